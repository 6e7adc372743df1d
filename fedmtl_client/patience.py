"""Retries while the server is away: backoff, time limit and log messages."""

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
"""Seconds before a retry: at most the first number, doubled with each attempt, up to the second number."""
STEADY_S = 10.0
"""A stream of events that lasted this many seconds is no short stream."""

_T = TypeVar("_T")


_ADVICE = ". Is it running, and is the address right? A server without --keep-serving stops when its run is over"


class Patience:
    """Retries calls until the server answers.

    Args:
        address: the server's address, for messages.
        reconnect_s: how long, in seconds, a call keeps trying while the server is away.
        closed: ends all waiting when set.
        before_retry: called after every failed attempt that is followed by another attempt.
    """

    def __init__(self, address: str, reconnect_s: float, closed: threading.Event, before_retry: Callable[[], None]):
        self.address = address
        self.reconnect_s = reconnect_s
        self.closed = closed
        self.before_retry = before_retry
        self.last_contact = 0.0
        """Time of the latest progress of a transfer, on the monotonic clock."""
        self._was_reached = False
        self._outage = threading.Lock()
        self._away_since: float | None = None
        self._log = get_logger()

    def answered(self) -> None:
        """Record that the server has answered a call, or sent a message of a stream."""
        self._was_reached = True

    def made_progress(self) -> None:
        """Record that a transfer progressed, so the server isn't away."""
        self.last_contact = time.monotonic()

    def is_transient(self, error: BaseException) -> bool:
        """Whether to retry. A server that was trusted once is retried, since it may get a new certificate."""
        if isinstance(error, UntrustedServerError):
            return self._was_reached
        if isinstance(error, LimitExceededError):
            return error.retry_after_s is not None
        return isinstance(error, UnavailableError | ChecksumError)

    def keep_trying(self, call: str, attempt: Callable[[], _T], should_stop: Callable[[], bool]) -> _T:
        """Call until the server answers, with exponential backoff and jitter.

        If the server says when to retry, no attempt comes sooner. The call fails if nothing was received from the
        server for `reconnect_s`, however long the call went well before. The backoff starts again from its minimum
        after an attempt that made progress.

        Args:
            call: the call's name in the log.
            attempt: makes the call once.
            should_stop: called after every failed attempt; True ends the attempts.
        """
        series = _Series(self, call, should_stop)
        retrying = Retrying(
            retry=retry_if_exception(self.is_transient),
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
            advice = "" if str(error).endswith("?") else _ADVICE
            raise UnreachableError(f"no server at {self.address}{waited}: {error}{advice}") from None
        if series.has_failed:
            self._end_outage()
        return answer

    def note_outage(self) -> None:
        """Record that a call fails, unless an outage is recorded already."""
        with self._outage:
            self._away_since = self._away_since or time.monotonic()

    def _end_outage(self) -> None:
        """Log the end of the outage once, even if several calls are answered."""
        with self._outage:
            since, self._away_since = self._away_since, None
        if since is not None:
            self._log.info("server.back", address=self.address, away_s=round(time.monotonic() - since, 1))


class Losses:
    """Event streams that end although they could be opened: limits reconnection and logs it.

    Args:
        patience: the retry state of the calls that open the streams.
    """

    def __init__(self, patience: Patience):
        self._patience = patience
        self._opened = 0.0
        self._num_short = 0
        self._since = 0.0
        """When the first of the consecutive short streams was opened."""

    def opened(self) -> None:
        """Record that a stream has begun."""
        self._opened = time.monotonic()

    def note(self, error: UnavailableError | LimitExceededError | None) -> None:
        """Record that the stream has ended.

        Args:
            error: the reason; None if the server ended the stream.

        Raises:
            IntermediaryError: an intermediary has ended each stream soon after it was opened, for `reconnect_s`.
        """
        self._count()
        if error is None:
            return
        lasted_s = time.monotonic() - self._since
        if self._num_short and isinstance(error, IntermediaryError) and lasted_s >= self._patience.reconnect_s:
            raise IntermediaryError(
                f"each stream of events from {self._patience.address} has ended soon after it began, for "
                f"{lasted_s:.0f} s (client.reconnect_s): does a proxy limit the duration of streams, or does the "
                f"server fail (see its log)? The last error: {error}"
            )
        if self._num_short & (self._num_short - 1) == 0:  # 0, 1, 2, 4, 8 …
            get_logger().warning("server.lost", address=self._patience.address, reason=str(error))

    def wait(self) -> None:
        """Wait before the next stream; the wait grows with the number of consecutive short streams."""
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
        """Whether an attempt failed and was followed by another."""

    @property
    def away_s(self) -> float:
        """Seconds since anything was received from the server."""
        return time.monotonic() - max(self._began, self._patience.last_contact)

    def wait_s(self, state: RetryCallState) -> float:
        """Return the wait before the next attempt, in seconds."""
        if (asked_s := _retry_after_s(state)) is not None:
            return asked_s * random.uniform(1, 1.5)  # so that the clients don't all retry at once
        self._in_vain = self._in_vain + 1 if self._patience.last_contact == self._last_contact else 0
        self._last_contact = self._patience.last_contact
        return random.uniform(0, min(MAX_WAIT_S, FIRST_WAIT_S * 2**self._in_vain))

    def is_over(self, _: RetryCallState) -> bool:
        """Whether to make no further attempt."""
        patience = self._patience
        return self.away_s >= patience.reconnect_s or patience.closed.is_set() or self._should_stop()

    def prepare_retry(self, state: RetryCallState) -> None:
        """Log the failed attempt and renew the credentials before the next one."""
        if self._patience.closed.is_set():
            return
        self.has_failed = True
        self._patience.note_outage()
        self._patience.before_retry()
        self._log_failure(state)

    def _log_failure(self, state: RetryCallState) -> None:
        """Log the 1st failure, the 2nd, the 4th and so on, since an outage may last for thousands of attempts."""
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
    """Return the server's requested delay before the next attempt, in seconds; None if it requested none."""
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after_s if isinstance(error, LimitExceededError) else None
