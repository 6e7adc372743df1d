"""The clients that a run is begun with: the first round waits for all of them, whatever its quorum."""

from __future__ import annotations

from collections.abc import Collection


class Arrivals:
    """Who is awaited, and until when.

    Without it, the first round is of whichever clients were faster, and two runs of one configuration differ.

    Args:
        expected: client ids; nobody is awaited if empty.
        patience_s: how long to wait after the last of them that has come.
        now: the time, in seconds.
    """

    def __init__(self, expected: Collection[str], patience_s: float, now: float):
        self._expected = frozenset(expected)
        self._patience_s = patience_s
        self._seen: set[str] = set()
        self.until = now + patience_s
        """When the wait is given up, if nobody else comes."""

    def came(self, client_id: str, now: float) -> None:
        """A client has connected. One that comes again, as often as it likes, prolongs nothing."""
        if client_id in self._expected and client_id not in self._seen:
            self._seen.add(client_id)
            self.until = now + self._patience_s

    def missing(self, present: Collection[str]) -> list[str]:
        """Those who aren't there, by name."""
        return sorted(self._expected.difference(present))

    def are_awaited(self, present: Collection[str], now: float) -> bool:
        """Whether somebody is still to come."""
        return now < self.until and not self._expected.issubset(present)

    def end(self) -> None:
        """Wait for nobody any more."""
        self._expected = frozenset()
