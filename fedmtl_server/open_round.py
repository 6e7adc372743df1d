"""The round in progress, as the intake of updates sees it: what may count, what it waits for, and what counts."""

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
    """What updates are taken for.

    Args:
        engine: the run's rounds.
        parts: what the run is driven with.
        transfer_timeout_s: how long an upload may make no progress before its round no longer waits for it.
        on_counted: called when an update counts.
    """

    def __init__(self, engine: RoundEngine, parts: RunParts, transfer_timeout_s: float, on_counted: Callable[[], None]):
        self.engine = engine
        self.updates = RoundUpdates(parts.commits, parts.staging)
        """Those that count."""
        self.transfers = Transfers(parts.staging, transfer_timeout_s / 2, self.progress)
        """Those on their way."""
        self.stats = RoundStats()
        """What was gathered of the round."""
        self.is_open = asyncio.Event()
        """Set while it takes updates, and when the run has ended."""
        self.stopped: UnavailableError | None = None
        """Why the server takes no updates any more, if it doesn't."""
        self._commits = parts.commits
        self._norms = parts.commits.pipeline.find(NormScreening) or NormScreening(NO_NORMS)
        self.examination = Examination(self._norms, parts.staging)
        """Checks updates that are whole, before they count."""
        self._listeners = parts.listeners
        self._clock = parts.clock
        self._on_counted = on_counted

    def require_serving(self) -> None:
        """Check that the server isn't stopping.

        Raises:
            UnavailableError: it is.
        """
        if self.stopped:
            raise self.stopped

    def admit(self, update: Update) -> int | None:
        """Check that an update may count.

        Returns:
            None if it may, or the round in which it already does.

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
        """How many updates are accumulated before a client's."""
        return self.updates.place_of(client_id)

    def received(self, num_bytes: int) -> None:
        """Note bytes of an upload."""
        self.stats.bytes_received += num_bytes

    def take_stats(self) -> RoundStats:
        """What was gathered of the round; what comes from now on belongs to the next one."""
        stats, self.stats = self.stats, RoundStats()
        return stats

    def progress(self, client_id: str) -> None:
        """Note that a client's upload moves: its round waits for it."""
        self.engine.progress(client_id, self._clock())

    def norm_reference(self) -> NormReference:
        """What the norms of the round's updates are held against."""
        base, norms = self._commits.model.components, self._commits.model_norms
        return NormReference(base, norms, self._norms.refusal_bounds, self._norms.limits(norms))

    async def until_open(self, update: Update) -> None:
        """Wait for the round to be taking updates: while it opens, or with asynchronous rounds while one is averaged.

        Raises:
            StaleRoundError, InvalidRequestError, UnavailableError: as `admit`.
        """
        while not self.is_open.is_set():
            if self.admit(update) is not None:
                return
            await self.is_open.wait()

    def count(self, transfer: Transfer) -> None:
        """Count an update whose bytes, if it has any, are complete and checked.

        Raises:
            StaleRoundError, InvalidRequestError: see `RoundEngine.count`.
        """
        self.engine.count(transfer.update)
        self.transfers.complete(transfer)
        self.updates.take(transfer)
        self._on_counted()
        for listener in self._listeners:
            listener.update_counted(transfer.update)
