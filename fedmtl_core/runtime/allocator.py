"""How the process gets its memory and gives it back: large blocks are kept, and what stays isn't looked at again."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # <malloc.h>
_LARGEST_FROM_HEAP = 32 * 2**20  # the most that glibc takes
_KEPT_FREE = 64 * 2**20
_TAKEN_AHEAD = 16 * 2**20


def keep_freed_blocks() -> bool:
    """Tell the C library's allocator to keep freed blocks of a few megabytes instead of giving them back at once.

    A stream of 2 MiB messages otherwise asks the kernel for every one of them anew, and clearing those pages costs as
    much as moving the bytes: bare gRPC runs 1.3 to 1.6 times as fast with this. The process keeps up to 64 MiB of
    freed memory. It is for command lines to call, once, before anything large; a library leaves its host alone.

    Returns:
        Whether the allocator understood. Only glibc's does.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    settings = {
        _M_MMAP_THRESHOLD: _LARGEST_FROM_HEAP,
        _M_TRIM_THRESHOLD: _KEPT_FREE,
        _M_TOP_PAD: _TAKEN_AHEAD,
        _M_ARENA_MAX: 1,  # each arena keeps what was freed for itself, and gRPC's threads would use a dozen
    }
    understood = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(understood)


def give_back_freed_blocks() -> None:
    """Give memory that was freed back to the system, wherever it lies. It takes a moment; for after something large.

    A PyTorch model that was built and copied elsewhere leaves hundreds of megabytes in the middle of the heap.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


def keep_what_is_there() -> None:
    """Tell Python's garbage collector to leave alone what there is by now: libraries, mostly, that stay to the end.

    Otherwise it looks through all of that every now and then, which takes half a second in which nothing else runs, and
    does so the more often the more calls come. For command lines to call, once, when all is loaded.
    """
    gc.collect()
    gc.freeze()
