"""Concurrency limits as bookkeeping without gRPC and tasks; callers pass in the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fedmtl_core.errors import LimitExceededError
from fedmtl_server.access.rates import RETRY_S


class Quota:
    """Limits the number of concurrent calls of each caller.

    Args:
        what: the name of the calls in messages.
        most: the maximum number for each caller.
    """

    def __init__(self, what: str, most: int):
        self._what = what
        self._most = most
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._counts.total()

    def acquire(self, caller: str) -> None:
        """Count one more call of a caller.

        Raises:
            LimitExceededError: the caller has reached the maximum.
        """
        if self._counts[caller] >= self._most:
            raise LimitExceededError(
                f"{self._what}: at most {self._most} at once for a client, it has {self._counts[caller]} already",
                retry_after_s=RETRY_S,
            )
        self._counts[caller] += 1

    def release(self, caller: str) -> None:
        """Count one call of a caller less."""
        self._counts[caller] -= 1
        if self._counts[caller] <= 0:
            del self._counts[caller]


@dataclass(eq=False)
class Permit:
    """The permit that one call needs to run: granted, waiting in the queue, or revoked."""

    group: str
    """The group whose share of the permits it counts toward."""
    progress_at: float
    """When the call last made progress; initially when the permit was requested, then when it was granted."""
    on_grant: Callable[[], None] = field(default=lambda: None)
    on_revoke: Callable[[], None] = field(default=lambda: None)
    """Called when another call needs the permit more, or when there is no room in the queue."""


class FairSemaphore:
    """Grants a fixed number of permits, shared fairly between groups.

    If no permit is free, or other calls wait, the first rule that applies decides about a new call:

    1. It gets a permit of the group with the most permits, if that group has at least two more than the call's group.
    2. It gets the permit of a call that has made no progress for `stall_s` seconds, if no call waits.
    3. It waits in a queue, from which the group with the fewest permits is served first.
    4. If the queue is full, it replaces the last waiting call of the group with the most waiting calls, if that group
       has at least two more than the call's group. Otherwise its permit is revoked.

    Args:
        capacity: the number of permits.
        max_waiting: the maximum number of waiting calls.
        stall_s: the time without progress after which a permit can be revoked, in seconds; never if it is infinite.
    """

    def __init__(self, capacity: int, max_waiting: int = 0, stall_s: float = float("inf")):
        self._capacity = capacity
        self._max_waiting = max_waiting
        self._stall_s = stall_s
        self._held: dict[Permit, None] = {}
        self._queue: dict[Permit, None] = {}

    @property
    def num_held(self) -> int:
        return len(self._held)

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    def acquire(self, permit: Permit, now: float) -> None:
        """Grant a permit, queue it, or revoke it. Another call's permit can be revoked instead."""
        if len(self._held) < self._capacity and not self._queue:
            self._grant(permit, now)
        elif (victim := self._victim(permit.group, now)) is not None:
            self._revoke(self._held, victim)
            self._grant(permit, now)
        elif len(self._queue) < self._max_waiting:
            self._queue[permit] = None
        elif self._queue and (most := _largest(self._queue, permit.group)) is not None:
            self._revoke(self._queue, [one for one in self._queue if one.group == most][-1])
            self._queue[permit] = None
        else:
            permit.on_revoke()

    def release(self, permit: Permit, now: float) -> None:
        """Release a granted or waiting permit, and grant free permits to waiting calls. A second call does nothing."""
        self._queue.pop(permit, None)
        if permit in self._held:
            del self._held[permit]
            self._move_up(now)

    def note_progress(self, permit: Permit, now: float) -> None:
        """Note that a call made progress."""
        permit.progress_at = now

    def revoke_stalled(self, now: float) -> None:
        """Revoke permits of stalled calls while other calls wait."""
        while self._queue and (victim := self._stalled(now)) is not None:
            self._revoke(self._held, victim)
            self._move_up(now)

    def _victim(self, group: str, now: float) -> Permit | None:
        most = _largest(self._held, group)
        if most is not None:
            return min((one for one in self._held if one.group == most), key=lambda one: one.progress_at)
        return None if self._queue else self._stalled(now)

    def _stalled(self, now: float) -> Permit | None:
        oldest = min(self._held, key=lambda one: one.progress_at, default=None)
        return oldest if oldest is not None and now - oldest.progress_at >= self._stall_s else None

    def _move_up(self, now: float) -> None:
        while self._queue and len(self._held) < self._capacity:
            held = _counts(self._held)
            first = min(self._queue, key=lambda one: held[one.group])
            del self._queue[first]
            self._grant(first, now)

    def _grant(self, permit: Permit, now: float) -> None:
        permit.progress_at = now
        self._held[permit] = None
        permit.on_grant()

    @staticmethod
    def _revoke(permits: dict[Permit, None], victim: Permit) -> None:
        del permits[victim]
        victim.on_revoke()


def _counts(permits: Iterable[Permit]) -> Counter[str]:
    return Counter(permit.group for permit in permits)


def _largest(permits: Iterable[Permit], group: str) -> str | None:
    """Return the group with the most permits if it has at least two more than `group`; None otherwise."""
    counts = _counts(permits)
    most, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return most if count >= counts[group] + 2 else None
