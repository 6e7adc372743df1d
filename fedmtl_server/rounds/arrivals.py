"""The clients that a run is begun with: the first round waits for all of them, whatever its quorum."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Arrivals:
    """The clients that the first round waits for, and until when.

    Without it, the first round is of whichever clients were faster, and two runs of one configuration differ.
    """

    expected: frozenset[str]
    """Client ids; nobody is awaited if empty."""
    patience_s: float
    """How long to wait after the last of them has arrived."""
    until: float
    """The time, in seconds, at which the wait is given up if nobody else arrives."""
    seen: frozenset[str] = frozenset()
    """Those that have arrived at least once."""

    @classmethod
    def begin(cls, expected: Collection[str], patience_s: float, now: float) -> Arrivals:
        """The wait at its beginning, before anybody has arrived."""
        return cls(frozenset(expected), patience_s, now + patience_s)

    def came(self, client_id: str, now: float) -> Arrivals:
        """The wait after a client has connected. A client that connects again doesn't prolong it."""
        if client_id not in self.expected or client_id in self.seen:
            return self
        return replace(self, seen=self.seen | {client_id}, until=now + self.patience_s)

    def missing(self, present: Collection[str]) -> list[str]:
        """The expected clients that aren't connected, by name."""
        return sorted(self.expected.difference(present))

    def are_awaited(self, present: Collection[str], now: float) -> bool:
        """Whether an expected client is still to arrive."""
        return now < self.until and not self.expected.issubset(present)

    def ended(self) -> Arrivals:
        """The wait once it is over: nobody is expected any more."""
        return replace(self, expected=frozenset())
