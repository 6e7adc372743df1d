"""The round in progress, for the intake of updates: admission, progress and counting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fedmtl_core.errors import UnavailableError
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.stages.norms import NO_NORMS, NormScreening
from fedmtl_server.round_updates import RoundUpdates
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.run_spec import RunParts
from fedmtl_server.storage.bookkeeping import RoundStats
from fedmtl_server.transfer.examination import Examination, NormReference
from fedmtl_server.transfer.incoming import Transfer, Transfers


class OpenRound:
    """The round in progress, which accepts updates.

    Args:
        engine: the state machine of the run's rounds.
        parts: the objects that carry out the run.
        transfer_timeout_s: how long an upload may make no progress before its round stops waiting for it, in seconds.
        on_counted: called when an update counts.
    """

    def __init__(self, engine: RoundEngine, parts: RunParts, transfer_timeout_s: float, on_counted: Callable[[], None]):
        self.engine = engine
        self.updates = RoundUpdates(parts.commits, parts.staging)
        """The updates that count."""
        self.transfers = Transfers(parts.staging, transfer_timeout_s / 2, self.progress)
        """The uploads in progress."""
        self.stats = RoundStats()
        """The statistics of the round."""
        self.is_open = asyncio.Event()
        """Set while the round accepts updates, and after the end of the run."""
        self.stopped: UnavailableError | None = None
        """The error for every request once the server is stopping; None before."""
        self._commits = parts.commits
        self._norms = parts.commits.pipeline.find(NormScreening) or NormScreening(NO_NORMS)
        self.examination = Examination(self._norms, parts.staging)
        """Checks complete updates before they count."""
        self._listeners = parts.listeners
        self._clock = parts.clock
        self._on_counted = on_counted

    def require_serving(self) -> None:
        """Check that the server isn't stopping.

        Raises:
            UnavailableError: the server is stopping.
        """
        if self.stopped:
            raise self.stopped

    def admit(self, update: Update) -> int | None:
        """Check that an update may count.

        Returns:
            None if the update may count, or the round in which it already counts.

        Raises:
            StaleRoundError, InvalidRequestError: see `RoundEngine.check` and `Pipeline.admit`.
            UnavailableError: the server is stopping.
        """
        self.require_serving()
        counted_in = self.engine.counted_in(update)
        if counted_in is None:
            self.engine.check(update)
            self._commits.pipeline.admit(update)
        return counted_in

    def place_of(self, client_id: str) -> int:
        """Return how many updates are accumulated before the client's update."""
        return self.updates.place_of(client_id)

    def received(self, num_bytes: int) -> None:
        """Record the number of bytes received from an upload."""
        self.stats.bytes_received += num_bytes

    def take_stats(self) -> RoundStats:
        """Return the statistics of the round, and start new statistics for the next round."""
        stats, self.stats = self.stats, RoundStats()
        return stats

    def progress(self, client_id: str) -> None:
        """Record that a client's upload makes progress, so that its round keeps waiting for it."""
        self.engine.progress(client_id, self._clock())

    def norm_reference(self, client_id: str) -> NormReference:
        """Return the reference values for the norms of a client's update in the round."""
        base, norms = self._commits.received_by(client_id), self._commits.model_norms
        return NormReference(base, norms, self._norms.refusal_bounds, self._norms.limits(norms))

    async def until_open(self, update: Update) -> None:
        """Wait until the round accepts updates: while it opens or, in asynchronous mode, during an aggregation.

        Raises:
            StaleRoundError, InvalidRequestError, UnavailableError: see `admit`.
        """
        while not self.is_open.is_set():
            if self.admit(update) is not None:
                return
            await self.is_open.wait()

    def count(self, transfer: Transfer) -> None:
        """Count an update. Its bytes, if it has any, are complete and checked.

        Raises:
            StaleRoundError, InvalidRequestError: see `RoundEngine.count`.
        """
        self.engine.count(transfer.update)
        self.transfers.complete(transfer)
        self.updates.take(transfer)
        self._on_counted()
        for listener in self._listeners:
            listener.update_counted(transfer.update)
