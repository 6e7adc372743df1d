"""Large buffers that are used again."""

from __future__ import annotations

import threading
from collections import defaultdict

import torch
from torch import Tensor


class BufferPool:
    """Large buffers to be used again: a fresh one costs several times what copying into it does.

    Args:
        max_free_bytes: the most to keep that nobody uses.
    """

    def __init__(self, max_free_bytes: int):
        self._max_free_bytes = max_free_bytes
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._free_bytes = 0
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """Bytes kept that nobody uses."""
        return self._free_bytes

    def acquire(self, num_bytes: int) -> Tensor:
        """A buffer, uint8 `(num_bytes,)`, that holds anything."""
        with self._lock:
            if self._free[num_bytes]:
                self._free_bytes -= num_bytes
                return self._free[num_bytes].pop()
        return torch.empty(num_bytes, dtype=torch.uint8)

    def release(self, buffer: Tensor) -> None:
        """Let a buffer be used again; whoever had it must not use it any more."""
        with self._lock:
            if self._free_bytes + len(buffer) <= self._max_free_bytes:
                self._free_bytes += len(buffer)
                self._free[len(buffer)].append(buffer)
