"""PyTorch's global random generator, which all threads of a process share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Within the context, make random draws depend only on a seed; restore the generator afterwards.

    Only one thread at a time enters, so that clients in one process start from equal initial values. A thread that
    trains with dropout draws from the same generator, and doesn't wait.
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seed_all(seed: int) -> None:
    """Seed the generator, but not while another thread draws within `drawing_from`."""
    with _LOCK:
        torch.manual_seed(seed)
