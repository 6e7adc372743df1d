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
    """A worker thread for calls of the main thread that must not be interrupted.

    Signal handlers run in the main thread, between any two instructions, and Ctrl-C's handler raises an exception
    there. Condition variables, and with them gRPC's bookkeeping of a stream, don't survive that exception: a lock is
    released twice, or the client waits for a message that it never requested. With this class, the main thread only
    waits, in a single C call.

    Args:
        end: makes the call in progress end soon and closes this object; called when the main thread is interrupted.
    """

    def __init__(self, end: Callable[[], object]):
        self._end = end
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="calls", daemon=True)
        self._thread.start()

    def make(self, call: Callable[[], _T]) -> _T:
        """Return or raise the outcome of a call. From a thread other than the main thread, make the call directly.

        Raises:
            BaseException: the exception that interrupted the main thread. The call has ended by then.
        """
        if self._closed.is_set() or threading.current_thread() is not threading.main_thread():
            return call()
        outcome: SimpleQueue[Future[_T]] = SimpleQueue()
        try:
            in_context = partial(copy_context().run, call)
            self._calls.put(lambda: outcome.put(_made(in_context)))
            if self._closed.is_set():  # closed meanwhile by another thread: the worker may have missed the call
                self._thread.join()
                if outcome.empty():
                    outcome.put(_made(call))
            made = outcome.get()
        except BaseException:
            self._end()
            raise
        return made.result()

    def close(self) -> None:
        """Wait for the call in progress, and run no more calls in the worker thread."""
        self._closed.set()
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (wanted := self._calls.get()) is not None:
            wanted()
            del wanted  # the call's objects must not outlive it while the thread waits for the next one


def _made(call: Callable[[], _T]) -> Future[_T]:
    made: Future[_T] = Future()
    try:
        made.set_result(call())
    except BaseException as failure:  # the requesting thread raises it, whatever it is
        made.set_exception(failure)
    return made
