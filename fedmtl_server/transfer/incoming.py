"""Updates on their way in, over however many streams, from room for their bytes to the last of them."""

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
    """An update on its way in."""

    update: Update
    staged: StagedUpdate
    stream: object
    """The stream that brings it now; another that was it before has nothing to say any more."""
    dropped: RequestError | None = None
    """Why it is wanted no longer, if it isn't."""
    refusal_of_history: asyncio.Task[RequestError | None] | None = None
    """Gives the error to raise if the run's history already has it."""
    norms: Mapping[str, float] = field(default_factory=dict)
    """By scope, how far it moves the model, once that was measured."""

    def require_stream(self, stream: object) -> None:
        """Check that a stream is the one that brings it now.

        Raises:
            UnavailableError: another one does.
            RequestError: it is wanted no longer; says why.
        """
        if self.dropped:
            raise self.dropped
        if self.stream is not stream:
            raise _overtaken()


class Transfers:
    """The updates on their way in, one for each client.

    Args:
        staging: where their bytes go.
        heartbeat_s: how often `keep_alive` is told of a client that waits for room.
        keep_alive: told its id.
    """

    def __init__(self, staging: StagingArea, heartbeat_s: float, keep_alive: Callable[[str], None]):
        self._staging = staging
        self._heartbeat_s = heartbeat_s
        self._keep_alive = keep_alive
        self._current: dict[str, Transfer] = {}

    def __contains__(self, client_id: str) -> bool:
        """Whether a client has an update on its way."""
        return client_id in self._current

    async def begin(
        self, update: Update, parts: Sequence[EncodedLayout], header: bytes, stream: object, place: int
    ) -> Transfer:
        """Room for an update, or what has arrived of it before.

        Args:
            update: which it is.
            parts: its components; those of a retry start at what `offsets` said. None for metrics alone.
            header: its header, serialised; it precedes the bytes in a file.
            stream: who brings it from now on.
            place: how many updates are folded before it.

        Raises:
            RequestError: the round closed while there was no room.
            UnavailableError: there is no room, or what the retry continues from isn't here.
        """
        before = self._current.get(update.client_id)
        starts = {part.scope: part.start for part in parts}
        if any(starts.values()):
            if before is None or not update.repeats(before.update) or not before.staged.continues_with(parts):
                raise UnavailableError("what the upload continues from is not staged here; ask QueryUpload again")
            before.update, before.stream = update, stream  # its chunks may be compressed otherwise
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
            if transfer.stream is not stream:  # it was forgotten while it waited, and got its room all the same
                self._staging.release(staged)
                transfer.require_stream(stream)
        staged.offsets = dict.fromkeys(staged.buffers, 0)
        return transfer

    def abandon(self, transfer: Transfer, stream: object, *, keep: bool) -> None:
        """Note that a stream ended before its update was complete.

        Args:
            transfer: what it brought.
            stream: itself.
            keep: whether what has arrived is good, for a retry to go on with.
        """
        if transfer.stream is not stream:
            return
        self._staging.rest(transfer.staged)
        if not keep or self._current.get(transfer.update.client_id) is not transfer:
            self.forget(transfer)

    def offsets(self, client_id: str, update_id: str) -> Mapping[str, int]:
        """By scope, how much has arrived of an update; it is the caller's to go on with from here."""
        transfer = self._current.get(client_id)
        if transfer is None or transfer.update.update_id != update_id:
            return {}
        transfer.stream = None
        self._staging.rest(transfer.staged)
        return dict(transfer.staged.offsets)

    def complete(self, transfer: Transfer) -> None:
        """Note that an update is there whole, and counts."""
        self._staging.rest(transfer.staged, complete=True)
        self._current.pop(transfer.update.client_id, None)

    def forget(self, transfer: Transfer, reason: RequestError | None = None) -> None:
        """Drop what has arrived of an update that doesn't count.

        Args:
            transfer: the update.
            reason: told to the stream that brings it, if one does.
        """
        transfer.stream, transfer.dropped = None, reason
        if self._current.get(transfer.update.client_id) is transfer:
            del self._current[transfer.update.client_id]
        self._staging.release(transfer.staged)

    def end(self, error: RequestError) -> None:
        """Drop everything that is on its way, and tell those who wait for room."""
        self._staging.refuse_waiting(error)
        for transfer in list(self._current.values()):
            self.forget(transfer, error)

    async def _wait_for_room(self, transfer: Transfer) -> None:
        room = asyncio.ensure_future(self._staging.make_room(transfer.staged))
        try:
            while not (await asyncio.wait([room], timeout=self._heartbeat_s))[0]:
                self._keep_alive(transfer.update.client_id)  # it's we who keep the client waiting
            room.result()
        finally:
            room.cancel()


def _overtaken() -> UnavailableError:
    return UnavailableError("the client has opened another upload")
