"""What a caller may have, as plain arithmetic: no gRPC, no tasks, and the time is passed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from fedmtl_core.errors import LimitExceededError

RETRY_S = 1.0
"""When to come back where it can't be said better."""

PENALTY_S = 60.0
"""How long an address is remembered whose connection was closed for going on past its limits."""

PENALISED_BURST, PENALISED_REFUSALS = 5, 1
"""What a new connection from there may do at once, and how often it is refused before it is closed too."""


class TokenBucket:
    """So many a second, and so many at once after a quiet time.

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


class Verdict(Enum):
    """What becomes of a call by its caller's pace."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    HANG_UP = "hang up"
    """It was told often enough."""


@dataclass
class _Pace:
    address: str
    calls: TokenBucket
    refusals: TokenBucket


class Paces:
    """How fast callers call. What is kept of one is given up when it is as good as new.

    Args:
        rate: calls a second for each caller.
        burst: calls at once.
        refusals: how many refusals a caller takes, which are forgotten at the same rate, before it is hung up on.
    """

    def __init__(self, rate: float, burst: int, refusals: int):
        self._rate = rate
        self._burst = burst
        self._refusals = refusals
        self._paces: dict[str, _Pace] = {}
        self._penalised: dict[str, float] = {}
        self._prune_at = 64

    def __len__(self) -> int:
        return len(self._paces)

    def call(self, caller: str, address: str, now: float) -> tuple[Verdict, float]:
        """Judge a call.

        Returns:
            The verdict, and the seconds until another call would be admitted; 0 for one that is.
        """
        wait_s = self._pace(caller, address, now).calls.take(now)
        return (self.refuse(caller, address, now), wait_s) if wait_s else (Verdict.ADMITTED, 0.0)

    def refuse(self, caller: str, address: str, now: float, weight: int = 1) -> Verdict:
        """Note that a caller was refused something, which counts as so many refusals."""
        if self._pace(caller, address, now).refusals.take(now, weight) == 0:
            return Verdict.REFUSED
        self._penalised[address] = now + PENALTY_S
        self._paces.pop(caller, None)
        return Verdict.HANG_UP

    def _pace(self, caller: str, address: str, now: float) -> _Pace:
        pace = self._paces.get(caller)
        if pace is None:
            self._prune(now)
            penalised = self._penalised.get(address, now) > now
            pace = self._paces[caller] = _Pace(
                address,
                TokenBucket(self._rate, self._burst, now, PENALISED_BURST if penalised else None),
                TokenBucket(self._rate, self._refusals, now, PENALISED_REFUSALS if penalised else None),
            )
        return pace

    def _prune(self, now: float) -> None:
        if len(self._paces) < self._prune_at:
            return
        self._penalised = {address: until for address, until in self._penalised.items() if until > now}
        self._paces = {
            caller: pace
            for caller, pace in self._paces.items()
            if pace.address in self._penalised or not (pace.calls.is_full(now) and pace.refusals.is_full(now))
        }
        self._prune_at = max(64, 2 * len(self._paces))


class Quota:
    """So many at once for each caller.

    Args:
        what: names them, for the message.
        most: how many.
    """

    def __init__(self, what: str, most: int):
        self._what = what
        self._most = most
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._counts.total()

    def enter(self, caller: str) -> None:
        """Count one more.

        Raises:
            LimitExceededError: the caller has as many as it may.
        """
        if self._counts[caller] >= self._most:
            raise LimitExceededError(
                f"{self._what}: at most {self._most} at once for a client, it has {self._counts[caller]} already",
                retry_after_s=RETRY_S,
            )
        self._counts[caller] += 1

    def leave(self, caller: str) -> None:
        """Count one less."""
        self._counts[caller] -= 1
        if self._counts[caller] <= 0:
            del self._counts[caller]


@dataclass(eq=False)
class Claim:
    """One call's claim to a place."""

    group: str
    """Whose share it counts to."""
    progress_at: float
    """When it last came on; it begins when it gets its place."""
    on_grant: Callable[[], None] = field(default=lambda: None)
    on_end: Callable[[], None] = field(default=lambda: None)
    """Told that it has to go: another needs its place more, or there is no room in the line."""


class FairPlaces:
    """So many places for all callers, shared fairly between groups.

    When all are taken, a claim gets the place of the group that has the most of them, if that has at least two more
    than its own; else that of whoever made no progress for long enough; else it waits in line, where the turn is the
    group's with the fewest places. In a full line the group that has the most in it gives way likewise.

    Args:
        capacity: how many.
        max_waiting: how many may wait.
        stall_s: after so much time without progress a place can be taken away; never if it is infinite.
    """

    def __init__(self, capacity: int, max_waiting: int = 0, stall_s: float = float("inf")):
        self._capacity = capacity
        self._max_waiting = max_waiting
        self._stall_s = stall_s
        self._holders: dict[Claim, None] = {}
        self._line: dict[Claim, None] = {}

    @property
    def num_held(self) -> int:
        return len(self._holders)

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    def add(self, claim: Claim, now: float) -> None:
        """Give a claim a place, or let it wait, or end it. Somebody else's may end instead."""
        if len(self._holders) < self._capacity and not self._line:
            self._grant(claim, now)
        elif (victim := self._victim(claim.group, now)) is not None:
            self._end(self._holders, victim)
            self._grant(claim, now)
        elif len(self._line) < self._max_waiting:
            self._line[claim] = None
        elif self._line and (most := _largest(self._line, claim.group)) is not None:
            self._end(self._line, [one for one in self._line if one.group == most][-1])
            self._line[claim] = None
        else:
            claim.on_end()

    def remove(self, claim: Claim, now: float) -> None:
        """Give up a claim; those that wait move up. More than once does no harm."""
        self._line.pop(claim, None)
        if claim in self._holders:
            del self._holders[claim]
            self._move_up(now)

    def progress(self, claim: Claim, now: float) -> None:
        """Note that a claim's call came on."""
        claim.progress_at = now

    def review(self, now: float) -> None:
        """Take places from those that have stalled meanwhile, as long as anybody waits for one."""
        while self._line and (victim := self._stalled(now)) is not None:
            self._end(self._holders, victim)
            self._move_up(now)

    def _victim(self, group: str, now: float) -> Claim | None:
        most = _largest(self._holders, group)
        if most is not None:
            return min((one for one in self._holders if one.group == most), key=lambda one: one.progress_at)
        return None if self._line else self._stalled(now)

    def _stalled(self, now: float) -> Claim | None:
        oldest = min(self._holders, key=lambda one: one.progress_at, default=None)
        return oldest if oldest is not None and now - oldest.progress_at >= self._stall_s else None

    def _move_up(self, now: float) -> None:
        while self._line and len(self._holders) < self._capacity:
            held = _counts(self._holders)
            first = min(self._line, key=lambda one: held[one.group])
            del self._line[first]
            self._grant(first, now)

    def _grant(self, claim: Claim, now: float) -> None:
        claim.progress_at = now
        self._holders[claim] = None
        claim.on_grant()

    @staticmethod
    def _end(claims: dict[Claim, None], victim: Claim) -> None:
        del claims[victim]
        victim.on_end()


def _counts(claims: Iterable[Claim]) -> Counter[str]:
    return Counter(claim.group for claim in claims)


def _largest(claims: Iterable[Claim], group: str) -> str | None:
    """The group with the most claims, if it can spare one to another that has fewer; None else."""
    counts = _counts(claims)
    most, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return most if count >= counts[group] + 2 else None
