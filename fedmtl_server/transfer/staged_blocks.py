"""The updates of a round that are read again, a block of elements at a time, from memory or from their files."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedmtl_core.wire.encoded_ranges import decode_range
from fedmtl_server.storage.spool import Spool
from fedmtl_server.transfer.staging import StagedUpdate


class StagedBlocks:
    """Updates that stay where they are while this is used; see `StagingArea.hold`.

    Args:
        updates: by client id; complete.
        spool: where the files are of those that aren't in memory.
    """

    def __init__(self, updates: Mapping[str, StagedUpdate], spool: Spool):
        self._updates = updates
        self._spool = spool

    def require_whole(self) -> None:
        """Check that the files are what was written to them: one pass over each.

        Raises:
            StoreError: one can't be read, or isn't.
        """
        for staged in self._updates.values():
            if not staged.buffers and staged.path is not None:
                self._spool.require_whole(staged.path)

    def read(self, client_id: str, scope: str, run: int, start: int, stop: int) -> Tensor:
        """Some elements of a component of an update, decoded: parameters or a delta, as they were sent.

        Args:
            client_id: whose update.
            scope: the component's.
            run: the number of the flat vector in the component's layout (`Layout.runs`).
            start: its first element to read.
            stop: the element after the last one to read.

        Returns:
            `(stop - start,)`, in the run's dtype; not to be written to.

        Raises:
            StoreError: the update isn't in memory, and its file can't be read.
        """
        staged = self._updates[client_id]
        before = 0
        for part in staged.parts:
            if part.scope == scope:
                break
            before += part.num_bytes
        if buffers := staged.buffers:
            return decode_range(part, lambda first, end: buffers[scope][first:end], run, start, stop)
        assert staged.path is not None
        with self._spool.opened(staged.path) as read:
            return decode_range(part, lambda first, end: read(before + first, before + end), run, start, stop)
