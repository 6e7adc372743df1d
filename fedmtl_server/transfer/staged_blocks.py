"""Reads the staged updates of a round in blocks of elements, from memory or from their files."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedmtl_core.wire.encoded_ranges import decode_range
from fedmtl_server.storage.spool import Spool
from fedmtl_server.transfer.staging import StagedUpdate


class StagedBlocks:
    """Reads complete updates in blocks of elements. The updates must be pinned meanwhile; see `StagingArea.pin`.

    Args:
        updates: the updates by client id.
        spool: the storage of the updates that are not in memory.
    """

    def __init__(self, updates: Mapping[str, StagedUpdate], spool: Spool):
        self._updates = updates
        self._spool = spool

    def require_whole(self) -> None:
        """Check that the files are intact, in one pass over each file.

        Raises:
            StoreError: a file can't be read, or differs from what was written.
        """
        for staged in self._updates.values():
            if not staged.buffers and staged.path is not None:
                self._spool.require_whole(staged.path)

    def read(self, client_id: str, scope: str, run: int, start: int, stop: int) -> Tensor:
        """Read and decode some elements of an update's component: parameters or a delta, as the client sent them.

        Args:
            client_id: the client of the update.
            scope: the scope of the component.
            run: the index of the flat vector in the component's layout (`Layout.runs`).
            start: the first element to read.
            stop: the element after the last one to read.

        Returns:
            A read-only tensor `(stop - start,)` in the dtype of the flat vector.

        Raises:
            StoreError: the update is not in memory, and its file can't be read.
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
