"""A limit on one client's share of a component.

Clients report their number of examples, and nobody can verify it: a client that reports 2^53 would determine the
average alone. The stage therefore limits an update's share of each component to which several clients contribute:

    w_i <= s / (1 - s) * (sum of the other clients' w),    w = examples * the factor of the client's task

The result depends only on the round's updates, not on their order of arrival. While a round is open, the sums only
grow. An update that is within the limit of the sums so far stays within it and can be accumulated; others wait.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from fractions import Fraction

from fedmtl_core.config.stages import CLIENT_SHARES
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.accumulators import Weight
from fedmtl_server.aggregation.stages.base import Stage
from fedmtl_server.aggregation.values import RoundContext, ScreenedUpdate


@dataclass(frozen=True)
class _Claim:
    """The values that one update reports."""

    task: str
    num_examples: int
    scopes: tuple[str, ...]


class ClientShares(Stage):
    """Limits the counted examples of each update of a round, in each of its components.

    Args:
        max_share: the largest share of one client in a component with several clients; at least 0.5 and below 1.
    """

    rule = CLIENT_SHARES

    def __init__(self, max_share: float):
        self._most = Fraction(max_share).limit_denominator(10**9)
        self.begin(RoundContext())

    def begin(self, context: RoundContext) -> None:
        self._factors = context.factors
        self._contributors = context.contributors
        self._claims: dict[str, _Claim] = {}
        self._totals: dict[str, Weight] = {}
        self._is_complete = False

    def count(self, update: Update, scopes: Collection[str]) -> None:
        claim = _Claim(update.task, update.num_examples, tuple(scopes))
        self._claims[update.client_id] = claim
        for scope in claim.scopes:
            self._totals[scope] = self._totals.get(scope, 0) + self._weight(claim, scope)

    def complete(self) -> None:
        self._is_complete = True

    def is_settled(self, client_id: str) -> bool:
        """Return whether an update's counted examples are independent of updates that may still arrive."""
        if self._is_complete:
            return True
        claim = self._claims[client_id]
        return all(self._is_within(claim, scope) or self._is_alone(client_id, scope) for scope in claim.scopes)

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        return replace(update, counted_examples=self.counted(update.client_id))

    def counted(self, client_id: str) -> dict[str, Fraction]:
        """Return a settled update's counted examples by scope, for scopes in which its client reported more."""
        claim = self._claims[client_id]
        counted = {}
        for scope in claim.scopes:
            others = self._totals[scope] - self._weight(claim, scope)
            if others and not self._is_within(claim, scope):
                weight = self._most / (1 - self._most) * others
                counted[scope] = weight / self._factors.of(scope, claim.task)
        return counted

    def _is_within(self, claim: _Claim, scope: str) -> bool:
        return self._weight(claim, scope) <= self._most * self._totals[scope]

    def _is_alone(self, client_id: str, scope: str) -> bool:
        """Return whether no other client can contribute to a component."""
        if self._contributors is None:
            return False
        return not any(scope in scopes for other, scopes in self._contributors.items() if other != client_id)

    def _weight(self, claim: _Claim, scope: str) -> Weight:
        return claim.num_examples * self._factors.of(scope, claim.task)
