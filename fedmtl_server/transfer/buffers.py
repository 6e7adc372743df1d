"""A pool of large buffers."""

from __future__ import annotations

import threading
from collections import defaultdict

import torch
from torch import Tensor


class BufferPool:
    """A pool of large buffers. Allocating a new buffer takes several times as long as copying into it.

    Args:
        max_free_bytes: the maximum size of all free buffers in bytes.
    """

    def __init__(self, max_free_bytes: int):
        self._max_free_bytes = max_free_bytes
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._free_bytes = 0
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """The size of all free buffers in bytes."""
        return self._free_bytes

    def acquire(self, num_bytes: int) -> Tensor:
        """Return a buffer, uint8 `(num_bytes,)`, with arbitrary content."""
        with self._lock:
            if self._free[num_bytes]:
                self._free_bytes -= num_bytes
                return self._free[num_bytes].pop()
        return torch.empty(num_bytes, dtype=torch.uint8)

    def release(self, buffer: Tensor) -> None:
        """Return a buffer to the pool. The caller must not use the buffer afterwards."""
        with self._lock:
            if self._free_bytes + len(buffer) <= self._max_free_bytes:
                self._free_bytes += len(buffer)
                self._free[len(buffer)].append(buffer)
