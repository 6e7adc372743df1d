"""In which order a round's updates are accumulated: the cohort's, whoever arrived first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedmtl_core.errors import AggregationError


class CohortOrder:
    """Whose update is accumulated next: the cohort's order, whoever arrived first.

    So the result doesn't depend, to the last bit, on who was faster; and an update whose turn has come can be taken
    at once, so that its memory can be used again.

    Args:
        order: the cohort's client ids, in the order in which to accumulate their updates.
        is_settled: whether an update that has arrived may be accumulated; until it may, those after it wait too.

    Raises:
        AggregationError: a client id is there twice.
    """

    def __init__(self, order: Sequence[str], is_settled: Callable[[str], bool] = lambda client_id: True):
        self._is_settled = is_settled
        self._order = list(order)
        self._place = {client_id: place for place, client_id in enumerate(self._order)}
        if len(self._place) != len(self._order):
            twice = next(client_id for client_id in self._order if self._order.count(client_id) > 1)
            raise AggregationError(f"client {twice!r} is there twice")
        self._arrived: set[str] = set()
        self._next = 0

    def place(self, client_id: str) -> int:
        """How many come before a client.

        Raises:
            AggregationError: it isn't in the order.
        """
        if client_id not in self._place:
            raise AggregationError(f"no update of {client_id!r} is expected")
        return self._place[client_id]

    def arrive(self, client_id: str) -> list[str]:
        """Note that a client's update is there.

        Returns:
            Those whose turn has come with it.

        Raises:
            AggregationError: the client isn't in the order, or was there already.
        """
        if self.place(client_id) < self._next or client_id in self._arrived:
            raise AggregationError(f"another update of {client_id!r} is there already")
        self._arrived.add(client_id)
        return self._leading(lambda one: one in self._arrived and self._is_settled(one))

    def close(self) -> list[str]:
        """Pass over those that didn't come.

        Returns:
            Those who did and whose turn comes only now.
        """
        return [client_id for client_id in self._leading(lambda _: True) if client_id in self._arrived]

    def append(self, client_id: str) -> None:
        """Have one more come, after all others. One that is there already keeps its place."""
        if client_id not in self._place:
            self._place[client_id] = len(self._order)
            self._order.append(client_id)

    def _leading(self, ready: Callable[[str], bool]) -> list[str]:
        first = self._next
        while self._next < len(self._order) and ready(self._order[self._next]):
            self._next += 1
        return self._order[first : self._next]
