"""The threads in which PyTorch computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Within the context, let this thread compute alone; restore the number of threads at the end.

    The last bits of a result then don't depend on the number of cores. Python threads that begin in the context compute
    alone too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
