"""Limits the rate of calls, as arithmetic without gRPC and tasks; callers pass in the time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

RETRY_S = 1.0
"""The delay before a retry, in seconds, if no better value is known."""

PENALTY_S = 60.0
"""How long an address is penalized after one of its connections was closed for exceeding limits, in seconds."""

PENALIZED_BURST, PENALIZED_REFUSALS = 5, 1
"""The burst of a new connection from a penalized address, and the refusals before that connection is closed too."""


class TokenBucket:
    """A token bucket: grants `rate` tokens a second, and up to `burst` tokens at once after a quiet time.

    In any t seconds it grants at most `burst + rate * t` tokens.

    Args:
        rate: tokens a second, > 0.
        burst: the capacity of the bucket, >= 1.
        now: seconds, monotonic.
        level: the tokens in the bucket at first; `burst` if None.
    """

    def __init__(self, rate: float, burst: float, now: float, level: float | None = None):
        self._rate = rate
        self._burst = burst
        self._level = burst if level is None else min(level, burst)
        self._at = now

    def take(self, now: float, count: int = 1) -> float:
        """Take `count` tokens, or `burst` tokens if `count` is larger.

        Returns:
            0 if the tokens were taken; otherwise the seconds until the bucket has them, and no token is taken.
        """
        self._refill(now)
        wanted = min(count, self._burst)
        if self._level >= wanted:
            self._level -= wanted
            return 0.0
        return (wanted - self._level) / self._rate

    def is_full(self, now: float) -> bool:
        """Whether the bucket is full."""
        self._refill(now)
        return self._level >= self._burst

    def _refill(self, now: float) -> None:
        self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate)
        self._at = max(now, self._at)


class Decision(Enum):
    """A rate limiter's decision about a call."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    HANG_UP = "hang up"
    """The caller was refused too often: the server closes its connection."""


@dataclass
class _CallerState:
    address: str
    calls: TokenBucket
    refusals: TokenBucket


class RateLimiter:
    """Limits the rate of each caller's calls and the number of its refusals. Callers that were quiet are forgotten.

    Args:
        rate: calls a second for each caller.
        burst: calls at once for each caller.
        refusals: the number of refusals before the caller's connection is closed; refusals are forgotten at `rate`.
    """

    def __init__(self, rate: float, burst: int, refusals: int):
        self._rate = rate
        self._burst = burst
        self._refusals = refusals
        self._callers: dict[str, _CallerState] = {}
        self._penalized: dict[str, float] = {}
        """By address, the time until which its new connections have lower limits."""
        self._prune_at = 64

    def __len__(self) -> int:
        return len(self._callers)

    def check(self, caller: str, address: str, now: float) -> tuple[Decision, float]:
        """Decide about a call.

        Returns:
            The decision, and the seconds until another call would be admitted; 0 if this one is.
        """
        wait_s = self._state_of(caller, address, now).calls.take(now)
        return (self.refuse(caller, address, now), wait_s) if wait_s else (Decision.ADMITTED, 0.0)

    def refuse(self, caller: str, address: str, now: float, weight: int = 1) -> Decision:
        """Count `weight` refusals of a caller.

        Returns:
            `REFUSED`, or `HANG_UP` if the caller was refused too often.
        """
        if self._state_of(caller, address, now).refusals.take(now, weight) == 0:
            return Decision.REFUSED
        self._penalized[address] = now + PENALTY_S
        self._callers.pop(caller, None)
        return Decision.HANG_UP

    def _state_of(self, caller: str, address: str, now: float) -> _CallerState:
        state = self._callers.get(caller)
        if state is None:
            self._prune(now)
            penalized = self._penalized.get(address, now) > now
            state = self._callers[caller] = _CallerState(
                address,
                TokenBucket(self._rate, self._burst, now, PENALIZED_BURST if penalized else None),
                TokenBucket(self._rate, self._refusals, now, PENALIZED_REFUSALS if penalized else None),
            )
        return state

    def _prune(self, now: float) -> None:
        if len(self._callers) < self._prune_at:
            return
        self._penalized = {address: until for address, until in self._penalized.items() if until > now}
        self._callers = {
            caller: state
            for caller, state in self._callers.items()
            if state.address in self._penalized or not (state.calls.is_full(now) and state.refusals.is_full(now))
        }
        self._prune_at = max(64, 2 * len(self._callers))
