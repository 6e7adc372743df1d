"""The wait for the clients that a run starts with: the first round waits for all of them, whatever its quorum."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Arrivals:
    """The clients that the first round waits for, and the end of the wait.

    Without this wait, the fastest clients would form the first round, and two runs of one configuration would differ.
    """

    expected: frozenset[str]
    """Client ids; empty for no wait."""
    patience_s: float
    """Seconds to wait after the latest arrival."""
    until: float
    """The time, in seconds, at which the wait ends if no other client arrives."""
    seen: frozenset[str] = frozenset()
    """The expected clients that have arrived at least once."""

    @classmethod
    def begin(cls, expected: Collection[str], patience_s: float, now: float) -> Arrivals:
        """Return the wait at its start, before any client has arrived."""
        return cls(frozenset(expected), patience_s, now + patience_s)

    def came(self, client_id: str, now: float) -> Arrivals:
        """Return the wait after a client has connected. A client that connects again doesn't extend it."""
        if client_id not in self.expected or client_id in self.seen:
            return self
        return replace(self, seen=self.seen | {client_id}, until=now + self.patience_s)

    def missing(self, present: Collection[str]) -> list[str]:
        """Return the expected clients that aren't connected, sorted by name."""
        return sorted(self.expected.difference(present))

    def are_awaited(self, present: Collection[str], now: float) -> bool:
        """Return whether an expected client has yet to arrive."""
        return now < self.until and not self.expected.issubset(present)

    def ended(self) -> Arrivals:
        """Return the wait when it is over: no client is expected."""
        return replace(self, expected=frozenset())
