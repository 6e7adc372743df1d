"""How much of a component one of several clients may be.

Clients say how many examples they have trained on, and nobody can check it: one that says 2^53 would be the average
by itself. So an update counts for no more than a share of each component that several clients contribute to:

    w_i <= s / (1 - s) * (sum of the others' w),    w = examples * what an example of the task counts for

That is a function of what the round's updates say, whoever was faster. While a round is open the sums only grow: an
update that is within the limit by what is known already stays within it, and may be accumulated; another one waits.
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
    """What one update says."""

    task: str
    num_examples: int
    scopes: tuple[str, ...]


class ClientShares(Stage):
    """Limits what each update of a round counts as, in each of its components.

    Args:
        max_share: the most that one of several clients may be of a component, at least a half and below 1.
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
        """Whether what an update counts as doesn't depend on those that may still come."""
        if self._is_complete:
            return True
        claim = self._claims[client_id]
        return all(self._is_within(claim, scope) or self._is_alone(client_id, scope) for scope in claim.scopes)

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        return replace(update, counted_examples=self.counted(update.client_id))

    def counted(self, client_id: str) -> dict[str, Fraction]:
        """By scope, the examples that a settled update counts as, where these are less than it says."""
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
        """Whether no other client can contribute to a component."""
        if self._contributors is None:
            return False
        return not any(scope in scopes for other, scopes in self._contributors.items() if other != client_id)

    def _weight(self, claim: _Claim, scope: str) -> Weight:
        return claim.num_examples * self._factors.of(scope, claim.task)
