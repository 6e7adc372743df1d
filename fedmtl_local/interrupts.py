"""What asks a program to stop, and when it may be stopped."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_AFTER_S = 0.1
_Handler = Callable[[int, FrameType | None], object] | int | None


@contextmanager
def interruptible() -> Iterator[None]:
    """Have what asks the main thread to stop raise `KeyboardInterrupt`, as Ctrl-C does, and none of it be lost.

    Python drops what is raised while an object is finalised, or in the callback of a weak reference, and a signal may
    come at any time. What was dropped is raised again a moment later. A signal that is ignored, as with
    `nohup`, stays so.
    """
    heard = _heard()
    hook, before = sys.unraisablehook, {number: signal.signal(number, _interrupt) for number in heard}
    sys.unraisablehook = _Again(hook, heard)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _set(before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put an interrupt off until the end, so that a process that is being started isn't lost sight of.

    A signal that is ignored stays so, also in that process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # nothing interrupts it
        return
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in _heard()}
    try:
        yield
    finally:
        _set(before)
    for first in arrived[:1]:
        signal.raise_signal(first)


class _Again:
    """In the place of `sys.unraisablehook`: raises a dropped interrupt again, and leaves the rest to another hook.

    Args:
        others: that hook.
        heard: signals that interrupt; any of them will do.
    """

    def __init__(self, others: Callable[[sys.UnraisableHookArgs], object], heard: Sequence[signal.Signals]):
        self._others = others
        self._heard = heard

    def __call__(self, dropped: sys.UnraisableHookArgs) -> None:
        if not self._heard or not issubclass(dropped.exc_type, KeyboardInterrupt):
            self._others(dropped)
            return
        main = threading.main_thread().ident
        assert main is not None
        later = threading.Timer(_AGAIN_AFTER_S, signal.pthread_kill, (main, self._heard[0]))
        later.daemon = True
        later.start()


def _heard() -> list[signal.Signals]:
    """Of the signals that ask to stop, those that aren't ignored."""
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _set(handlers: Mapping[signal.Signals, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
