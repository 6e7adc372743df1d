"""Handles the signals that ask a program to stop, and defers them where an interrupt would do harm."""

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
    """Raise `KeyboardInterrupt` in the main thread for every signal that asks to stop, and lose none of them.

    Python drops exceptions raised in a finalizer or in the callback of a weak reference, and a signal may arrive at any
    time. A dropped interrupt is raised again a moment later. An ignored signal, as with `nohup`, stays ignored.
    """
    signals = _stop_signals()
    hook, before = sys.unraisablehook, {number: signal.signal(number, _interrupt) for number in signals}
    sys.unraisablehook = _InterruptRetry(hook, signals)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _restore(before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer interrupts until the end of the block, so that a process that is being started is always recorded.

    An ignored signal stays ignored, also in a process started in the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals interrupt the main thread alone
        return
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in _stop_signals()}
    try:
        yield
    finally:
        _restore(before)
    for first in arrived[:1]:
        signal.raise_signal(first)


class _InterruptRetry:
    """A replacement of `sys.unraisablehook` that raises a dropped interrupt again and passes on other exceptions.

    Args:
        others: the hook for all other exceptions.
        signals: the signals that interrupt; the first is sent again.
    """

    def __init__(self, others: Callable[[sys.UnraisableHookArgs], object], signals: Sequence[signal.Signals]):
        self._others = others
        self._signals = signals

    def __call__(self, dropped: sys.UnraisableHookArgs) -> None:
        if not self._signals or not issubclass(dropped.exc_type, KeyboardInterrupt):
            self._others(dropped)
            return
        main = threading.main_thread().ident
        assert main is not None
        later = threading.Timer(_AGAIN_AFTER_S, signal.pthread_kill, (main, self._signals[0]))
        later.daemon = True
        later.start()


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that ask to stop and are not ignored."""
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _restore(handlers: Mapping[signal.Signals, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
