"""How fast a caller may call, as plain arithmetic: no gRPC, no tasks, and the time is passed in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

RETRY_S = 1.0
"""When to come back where it can't be said better."""

PENALTY_S = 60.0
"""How long an address is remembered whose connection was closed for going on past its limits."""

PENALISED_BURST, PENALISED_REFUSALS = 5, 1
"""What a new connection from there may do at once, and how often it is refused before it is closed too."""


class TokenBucket:
    """Grants so many tokens a second, and so many at once after a quiet time.

    In any stretch of t seconds it grants at most `burst + rate * t`.

    Args:
        rate: tokens a second, > 0.
        burst: the most it holds, >= 1.
        now: seconds, monotonic.
        level: what it holds at first; `burst` if None.
    """

    def __init__(self, rate: float, burst: float, now: float, level: float | None = None):
        self._rate = rate
        self._burst = burst
        self._level = burst if level is None else min(level, burst)
        self._at = now

    def take(self, now: float, count: int = 1) -> float:
        """Take tokens, no more than it can hold.

        Returns:
            0 if there were so many, else the seconds until there are; nothing is taken then.
        """
        self._refill(now)
        wanted = min(count, self._burst)
        if self._level >= wanted:
            self._level -= wanted
            return 0.0
        return (wanted - self._level) / self._rate

    def is_full(self, now: float) -> bool:
        """Whether it is as good as new."""
        self._refill(now)
        return self._level >= self._burst

    def _refill(self, now: float) -> None:
        self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate)
        self._at = max(now, self._at)


class Decision(Enum):
    """What a rate limiter decides about a call."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    HANG_UP = "hang up"
    """The caller was refused too often: its connection is to be closed."""


@dataclass
class _CallerState:
    address: str
    calls: TokenBucket
    refusals: TokenBucket


class RateLimiter:
    """Limits how fast each caller calls, and how often it is refused. Callers that have been quiet are forgotten.

    Args:
        rate: calls a second for each caller.
        burst: calls at once.
        refusals: how many refusals a caller takes before it is hung up on; they are forgotten at the same rate.
    """

    def __init__(self, rate: float, burst: int, refusals: int):
        self._rate = rate
        self._burst = burst
        self._refusals = refusals
        self._callers: dict[str, _CallerState] = {}
        self._penalised: dict[str, float] = {}
        """By address, until when connections from it may do less."""
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
        """Note that a caller was refused something, which counts as so many refusals."""
        if self._state_of(caller, address, now).refusals.take(now, weight) == 0:
            return Decision.REFUSED
        self._penalised[address] = now + PENALTY_S
        self._callers.pop(caller, None)
        return Decision.HANG_UP

    def _state_of(self, caller: str, address: str, now: float) -> _CallerState:
        state = self._callers.get(caller)
        if state is None:
            self._prune(now)
            penalised = self._penalised.get(address, now) > now
            state = self._callers[caller] = _CallerState(
                address,
                TokenBucket(self._rate, self._burst, now, PENALISED_BURST if penalised else None),
                TokenBucket(self._rate, self._refusals, now, PENALISED_REFUSALS if penalised else None),
            )
        return state

    def _prune(self, now: float) -> None:
        if len(self._callers) < self._prune_at:
            return
        self._penalised = {address: until for address, until in self._penalised.items() if until > now}
        self._callers = {
            caller: state
            for caller, state in self._callers.items()
            if state.address in self._penalised or not (state.calls.is_full(now) and state.refusals.is_full(now))
        }
        self._prune_at = max(64, 2 * len(self._callers))
