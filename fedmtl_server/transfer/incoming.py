"""Uploads in progress, from waiting for memory to the last byte. One upload may use several streams in sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedmtl_core.errors import RequestError, UnavailableError
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.updates import Update
from fedmtl_server.transfer.staging import StagedUpdate, StagingArea


@dataclass(eq=False)
class Transfer:
    """The upload of one update."""

    update: Update
    staged: StagedUpdate
    stream: object
    """The stream that carries the upload now. Earlier streams of the same upload are ignored."""
    dropped: RequestError | None = None
    """The error to raise if the upload was dropped; None otherwise."""
    refusal_of_history: asyncio.Task[RequestError | None] | None = None
    """Gives the error to raise if the run's history already has the update."""
    norms: Mapping[str, float] = field(default_factory=dict)
    """By scope, the norm of the update's change to the model; empty until it is measured."""

    def require_stream(self, stream: object) -> None:
        """Check that a stream carries the upload now.

        Raises:
            UnavailableError: another stream carries the upload.
            RequestError: the upload was dropped for this reason.
        """
        if self.dropped:
            raise self.dropped
        if self.stream is not stream:
            raise _overtaken()


class Transfers:
    """The uploads in progress, at most one per client.

    Args:
        staging: the storage for the uploaded bytes.
        heartbeat_s: the interval between calls of `keep_alive` while a client waits for memory, in seconds.
        keep_alive: called with the id of a client that waits for memory.
    """

    def __init__(self, staging: StagingArea, heartbeat_s: float, keep_alive: Callable[[str], None]):
        self._staging = staging
        self._heartbeat_s = heartbeat_s
        self._keep_alive = keep_alive
        self._current: dict[str, Transfer] = {}

    def __contains__(self, client_id: str) -> bool:
        """Whether a client has an upload in progress."""
        return client_id in self._current

    async def begin(
        self, update: Update, parts: Sequence[EncodedLayout], header: bytes, stream: object, place: int
    ) -> Transfer:
        """Begin the upload of an update, or continue it with a new stream.

        Args:
            update: the update.
            parts: the update's components; empty for metrics alone. In a retry they start at the result of `offsets`.
            header: the serialized header, which precedes the bytes in a file.
            stream: the stream that carries the upload from now on.
            place: the number of updates that are accumulated before this one.

        Raises:
            RequestError: the round closed while the update waited for memory.
            UnavailableError: there is no memory, or the bytes that the retry continues from are not staged.
        """
        before = self._current.get(update.client_id)
        starts = {part.scope: part.start for part in parts}
        if any(starts.values()):
            if before is None or not update.repeats(before.update) or not before.staged.continues_with(parts):
                raise UnavailableError(
                    "the bytes that this upload continues from are not staged on the server; call QueryUpload again"
                )
            before.update, before.stream = update, stream  # the new stream may compress its chunks differently
            before.staged.in_use = True
            return before
        if before is not None:
            self.forget(before, _overtaken())
        staged = StagedUpdate(header, place, parts)
        transfer = self._current[update.client_id] = Transfer(update, staged, stream)
        if parts:
            try:
                await self._wait_for_room(transfer)
            except BaseException:
                self.abandon(transfer, stream, keep=False)
                raise
            if transfer.stream is not stream:  # the upload was dropped while it waited, but got its memory
                self._staging.release(staged)
                transfer.require_stream(stream)
        staged.offsets = dict.fromkeys(staged.buffers, 0)
        return transfer

    def abandon(self, transfer: Transfer, stream: object, *, keep: bool) -> None:
        """Record that a stream ended before its update was complete.

        Args:
            transfer: the upload.
            stream: the stream that ended.
            keep: whether to keep the received bytes, so that a retry can continue the upload.
        """
        if transfer.stream is not stream:
            return
        self._staging.rest(transfer.staged)
        if not keep or self._current.get(transfer.update.client_id) is not transfer:
            self.forget(transfer)

    def offsets(self, client_id: str, update_id: str) -> Mapping[str, int]:
        """Return the received bytes of an update by scope. From now on the upload belongs to the caller."""
        transfer = self._current.get(client_id)
        if transfer is None or transfer.update.update_id != update_id:
            return {}
        transfer.stream = None
        self._staging.rest(transfer.staged)
        return dict(transfer.staged.offsets)

    def complete(self, transfer: Transfer) -> None:
        """Record that an update is complete and counts."""
        self._staging.rest(transfer.staged, complete=True)
        self._current.pop(transfer.update.client_id, None)

    def forget(self, transfer: Transfer, reason: RequestError | None = None) -> None:
        """Drop an upload and its received bytes.

        Args:
            transfer: the upload.
            reason: the error for the stream that carries the upload, if there is one.
        """
        transfer.stream, transfer.dropped = None, reason
        if self._current.get(transfer.update.client_id) is transfer:
            del self._current[transfer.update.client_id]
        self._staging.release(transfer.staged)

    def end(self, error: RequestError) -> None:
        """Drop all uploads in progress, and send the error to the uploads that wait for memory."""
        self._staging.refuse_waiting(error)
        for transfer in list(self._current.values()):
            self.forget(transfer, error)

    async def _wait_for_room(self, transfer: Transfer) -> None:
        room = asyncio.ensure_future(self._staging.make_room(transfer.staged))
        try:
            while not (await asyncio.wait([room], timeout=self._heartbeat_s))[0]:
                self._keep_alive(transfer.update.client_id)  # the server causes this wait, not the client
            room.result()
        finally:
            room.cancel()


def _overtaken() -> UnavailableError:
    return UnavailableError("the client has opened another upload")
