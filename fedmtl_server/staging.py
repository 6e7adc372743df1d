"""Where updates lie between their first byte and the average: pooled memory, and files beyond a budget."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedmtl_core.errors import UnavailableError
from fedmtl_core.layout import Component, Layout


class StagedUpdate:
    """Components for one update, to be given back with `release`."""

    def __init__(self, pool: StagingPool, components: dict[str, Component]):
        self.components = components
        self._pool = pool

    def release(self) -> None:
        """Give the bytes back; `components` must not be used any more. More than once does no harm."""
        components, self.components = self.components, {}
        for component in components.values():
            self._pool.take_back(component.buffer)


class StagingPool:
    """Hands out buffers: fresh large ones cost more than copying into them, so they are used again.

    Not thread-safe: one event loop's.

    Args:
        memory_bytes: how much may be in memory at once; what doesn't fit is staged in unlinked files.
        spool_dir: where those files are. It is made when first needed.
    """

    def __init__(self, memory_bytes: int, spool_dir: Path):
        self._memory_bytes = memory_bytes
        self._spool_dir = spool_dir
        self._in_memory: set[int] = set()
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes handed out in memory."""
        return self._used_bytes

    def stage(self, layouts: Sequence[Layout]) -> StagedUpdate:
        """Components of the given layouts; their bytes hold anything.

        Raises:
            UnavailableError: there is no room for them.
        """
        return StagedUpdate(
            self, {layout.scope: Component(layout, self._acquire(layout.num_bytes)) for layout in layouts}
        )

    def _acquire(self, num_bytes: int) -> Tensor:
        if self._used_bytes + num_bytes > self._memory_bytes and num_bytes:
            return self._spool(num_bytes)
        self._used_bytes += num_bytes
        buffer = self._free[num_bytes].pop() if self._free[num_bytes] else torch.empty(num_bytes, dtype=torch.uint8)
        self._in_memory.add(id(buffer))
        return buffer

    def take_back(self, buffer: Tensor) -> None:
        """Use a buffer that `stage` handed out again."""
        if id(buffer) in self._in_memory:
            self._in_memory.remove(id(buffer))
            self._used_bytes -= len(buffer)
            self._free[len(buffer)].append(buffer)

    def _spool(self, num_bytes: int) -> Tensor:
        try:
            self._spool_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._spool_dir, prefix="update-") as file:
                os.posix_fallocate(file.fileno(), 0, num_bytes)  # now: a page that finds no room kills the process
                return torch.from_file(file.name, shared=True, size=num_bytes, dtype=torch.uint8)
        except (OSError, RuntimeError) as error:
            raise UnavailableError(f"there is no room to stage an update of {num_bytes} bytes: {error}") from None
