"""Runs calls that must not be interrupted in a worker thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")


class CallThread:
    """A thread in which the main thread has calls made that mustn't be interrupted.

    Signal handlers run in the main thread, between any two instructions of it, and Ctrl-C's raises an exception there.
    A condition variable, and with it gRPC's bookkeeping of a stream, doesn't survive that: a lock is released twice, or
    a message is waited for that was never asked for. Here the main thread waits in one call of C alone.

    Args:
        end: has the call in progress end soon, and closes this; called when the main thread is interrupted.
    """

    def __init__(self, end: Callable[[], object]):
        self._end = end
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="calls", daemon=True)
        self._thread.start()

    def make(self, call: Callable[[], _T]) -> _T:
        """What a call returns or raises; made at once, in the thread that asks, where that isn't the main one.

        Raises:
            BaseException: what interrupted the main thread. The call has ended by then.
        """
        if self._closed.is_set() or threading.current_thread() is not threading.main_thread():
            return call()
        outcome: SimpleQueue[Future[_T]] = SimpleQueue()
        try:
            in_context = partial(copy_context().run, call)
            self._calls.put(lambda: outcome.put(_made(in_context)))
            if self._closed.is_set():  # meanwhile, by another thread: the call may have come too late
                self._thread.join()
                if outcome.empty():
                    outcome.put(_made(call))
            made = outcome.get()
        except BaseException:
            self._end()
            raise
        return made.result()

    def close(self) -> None:
        """Wait for the call in progress, and make no other here."""
        self._closed.set()
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (wanted := self._calls.get()) is not None:
            wanted()
            del wanted  # nothing outlives its call while the next one is awaited


def _made(call: Callable[[], _T]) -> Future[_T]:
    made: Future[_T] = Future()
    try:
        made.set_result(call())
    except BaseException as failure:  # whatever it is, it is for whoever asked to raise
        made.set_exception(failure)
    return made
