"""PyTorch's global generator, which all threads of a process draw from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Have what is drawn here depend on a seed alone, and leave the generator as it was.

    One thread at a time, so that clients in one process make the same first values. A thread that trains with dropout
    draws from the same generator, and isn't held up.
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seed_all(seed: int) -> None:
    """Seed the generator, but not while another thread is drawing from a seed of its own."""
    with _LOCK:
        torch.manual_seed(seed)
