"""The order in which a round's updates are accumulated: cohort order, whatever the order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedmtl_core.errors import AggregationError


class CohortOrder:
    """Determines which update is accumulated next, in cohort order rather than order of arrival.

    The result therefore doesn't depend on the order of arrival, to the last bit. An update whose turn has come is
    accumulated immediately, so that its memory can be reused.

    Args:
        order: the cohort's client ids, in the order in which to accumulate their updates.
        is_settled: returns whether an update that has arrived may be accumulated; until then, later updates wait too.

    Raises:
        AggregationError: a client id occurs twice.
    """

    def __init__(self, order: Sequence[str], is_settled: Callable[[str], bool] = lambda client_id: True):
        self._is_settled = is_settled
        self._order = list(order)
        self._place = {client_id: place for place, client_id in enumerate(self._order)}
        if len(self._place) != len(self._order):
            twice = next(client_id for client_id in self._order if self._order.count(client_id) > 1)
            raise AggregationError(f"client {twice!r} occurs twice")
        self._arrived: set[str] = set()
        self._next = 0

    def place(self, client_id: str) -> int:
        """Return the number of clients before a client.

        Raises:
            AggregationError: the client isn't in the order.
        """
        if client_id not in self._place:
            raise AggregationError(f"no update of {client_id!r} is expected")
        return self._place[client_id]

    def arrive(self, client_id: str) -> list[str]:
        """Register that a client's update has arrived.

        Returns:
            The clients whose updates can now be accumulated.

        Raises:
            AggregationError: the client isn't in the order, or its update had already arrived.
        """
        if self.place(client_id) < self._next or client_id in self._arrived:
            raise AggregationError(f"another update of {client_id!r} has already arrived")
        self._arrived.add(client_id)
        return self._leading(lambda one: one in self._arrived and self._is_settled(one))

    def close(self) -> list[str]:
        """Skip the clients whose updates didn't arrive.

        Returns:
            The clients whose updates arrived and can be accumulated only now.
        """
        return [client_id for client_id in self._leading(lambda _: True) if client_id in self._arrived]

    def append(self, client_id: str) -> None:
        """Add a client after all others. A client that is already in the order keeps its place."""
        if client_id not in self._place:
            self._place[client_id] = len(self._order)
            self._order.append(client_id)

    def _leading(self, ready: Callable[[str], bool]) -> list[str]:
        first = self._next
        while self._next < len(self._order) and ready(self._order[self._next]):
            self._next += 1
        return self._order[first : self._next]
