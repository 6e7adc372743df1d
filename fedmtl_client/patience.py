"""Calling again while the server is away: how often, how long, and what the log says of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception
from tenacity.nap import sleep_using_event

from fedmtl_core.errors import (
    ChecksumError,
    IntermediaryError,
    LimitExceededError,
    UnavailableError,
    UnreachableError,
    UntrustedServerError,
)
from fedmtl_core.logs import get_logger

FIRST_WAIT_S, MAX_WAIT_S = 0.2, 10.0
"""How long to wait before trying again: up to the first, then up to twice as long each time, up to the second."""
STEADY_S = 10.0
"""A stream of events that lasts so long was no short one."""

_T = TypeVar("_T")


class Patience:
    """Calls a server until it answers.

    Args:
        address: the server's, for messages.
        reconnect_s: how long a call keeps trying while the server is away.
        closed: ends all waiting.
        before_retry: called after every failed attempt that is followed by another.
    """

    def __init__(self, address: str, reconnect_s: float, closed: threading.Event, before_retry: Callable[[], None]):
        self.address = address
        self.reconnect_s = reconnect_s
        self.closed = closed
        self.before_retry = before_retry
        self.last_contact = 0.0
        """When a transfer came on last."""
        self._was_reached = False
        self._outage = threading.Lock()
        self._away_since: float | None = None
        self._log = get_logger()

    def answered(self) -> None:
        """Note that the server has answered a call, or a message of a stream."""
        self._was_reached = True

    def came_on(self) -> None:
        """Note that a transfer came on: the server isn't away."""
        self.last_contact = time.monotonic()

    def may_pass(self, error: BaseException) -> bool:
        """Whether it is worth to try again: a server that was trusted once may be so again, with a new certificate."""
        if isinstance(error, UntrustedServerError):
            return self._was_reached
        if isinstance(error, LimitExceededError):
            return error.retry_after_s is not None
        return isinstance(error, UnavailableError | ChecksumError)

    def keep_trying(self, call: str, attempt: Callable[[], _T], should_stop: Callable[[], bool]) -> _T:
        """Call until the server answers, with exponential backoff and jitter in between.

        A server that says when to come back is asked no sooner. It gives up when nothing was heard of the server for
        `reconnect_s`, however long the call went well before; and it is quick to try again where the last attempt went
        well for a while.

        Args:
            call: the name of what is called, for the log.
            attempt: calls once.
            should_stop: asked after every failure; trying again ends when it says so.
        """
        series = _Series(self, call, should_stop)
        retrying = Retrying(
            retry=retry_if_exception(self.may_pass),
            wait=series.wait_s,
            stop=series.is_over,
            sleep=sleep_using_event(self.closed),
            before_sleep=series.prepare_retry,
            reraise=True,
        )
        try:
            answer = retrying(attempt)
        except UnreachableError as error:
            if self.closed.is_set() or should_stop():
                raise
            waited = f" for {series.away_s:.0f} s (client.reconnect_s)" if series.has_failed else ""
            raise UnreachableError(
                f"no server at {self.address}{waited}: {error}. Is it running, and is that its address?"
            ) from None
        if series.has_failed:
            self._end_outage()
        return answer

    def note_outage(self) -> None:
        """Note that a call fails, if none did before."""
        with self._outage:
            self._away_since = self._away_since or time.monotonic()

    def _end_outage(self) -> None:
        """Log once, whichever of several calls is answered first."""
        with self._outage:
            since, self._away_since = self._away_since, None
        if since is not None:
            self._log.info("server.back", address=self.address, away_s=round(time.monotonic() - since, 1))


class Losses:
    """Streams of events that end although each could be opened: how long to wait before the next, and what is logged.

    Args:
        patience: that of the calls which open them.
    """

    def __init__(self, patience: Patience):
        self._patience = patience
        self._opened = 0.0
        self._num_short = 0
        self._since = 0.0
        """When the first of these short streams was opened."""

    def opened(self) -> None:
        """Note that a stream has begun."""
        self._opened = time.monotonic()

    def note(self, error: UnavailableError | LimitExceededError | None) -> None:
        """Note that it has ended.

        Args:
            error: why; None if the server ended it.

        Raises:
            IntermediaryError: something in between has ended each stream soon after it was opened, for `reconnect_s`.
        """
        self._count()
        if error is None:
            return
        lasted_s = time.monotonic() - self._since
        if self._num_short and isinstance(error, IntermediaryError) and lasted_s >= self._patience.reconnect_s:
            raise IntermediaryError(
                f"each stream of events from {self._patience.address} has ended soon after it began, for "
                f"{lasted_s:.0f} s (client.reconnect_s): is it a proxy's limit, or does the server fail? Its log says "
                f"so. The last: {error}"
            )
        if self._num_short & (self._num_short - 1) == 0:  # 0, 1, 2, 4, 8 …
            get_logger().warning("server.lost", address=self._patience.address, reason=str(error))

    def wait(self) -> None:
        """Wait before the next stream, the longer the more of them were short in a row."""
        if self._num_short:
            limit_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(self._num_short - 1, 10))
            self._patience.closed.wait(random.uniform(0, limit_s))

    def _count(self) -> None:
        if time.monotonic() - self._opened >= STEADY_S:
            self._num_short = 0
        elif self._num_short == 0:
            self._num_short, self._since = 1, self._opened
        else:
            self._num_short += 1


class _Series:
    """The attempts of one call."""

    def __init__(self, patience: Patience, call: str, should_stop: Callable[[], bool]):
        self._patience = patience
        self._call = call
        self._should_stop = should_stop
        self._began = time.monotonic()
        self._last_contact = patience.last_contact
        self._in_vain = 0
        self.has_failed = False
        """Whether an attempt failed that was followed by another."""

    @property
    def away_s(self) -> float:
        """For how long nothing was heard of the server."""
        return time.monotonic() - max(self._began, self._patience.last_contact)

    def wait_s(self, state: RetryCallState) -> float:
        """How long to wait before the next attempt."""
        if (asked_s := _retry_after_s(state)) is not None:
            return asked_s * random.uniform(1, 1.5)  # not all at once
        self._in_vain = self._in_vain + 1 if self._patience.last_contact == self._last_contact else 0
        self._last_contact = self._patience.last_contact
        return random.uniform(0, min(MAX_WAIT_S, FIRST_WAIT_S * 2**self._in_vain))

    def is_over(self, _: RetryCallState) -> bool:
        """Whether there is no further attempt."""
        patience = self._patience
        return self.away_s >= patience.reconnect_s or patience.closed.is_set() or self._should_stop()

    def prepare_retry(self, state: RetryCallState) -> None:
        """Do what has to be done between a failed attempt and the next: log the failure, and renew the credentials."""
        if self._patience.closed.is_set():
            return
        self.has_failed = True
        self._patience.note_outage()
        self._patience.before_retry()
        self._log_failure(state)

    def _log_failure(self, state: RetryCallState) -> None:
        """Log the first failure, the second, the fourth and so on: an outage may last for thousands."""
        if state.attempt_number & (state.attempt_number - 1) == 0:
            error = state.outcome.exception() if state.outcome else None
            get_logger().info(
                "server.away",
                address=self._patience.address,
                call=self._call,
                attempt=state.attempt_number,
                next_try_s=state.next_action.sleep if state.next_action else None,
                reason=str(error),
            )


def _retry_after_s(state: RetryCallState) -> float | None:
    """When the server that refused the last attempt wants to be asked again, if it said so."""
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after_s if isinstance(error, LimitExceededError) else None
