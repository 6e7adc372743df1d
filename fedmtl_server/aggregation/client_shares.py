"""How much of a component one of several clients may be.

Clients say how many examples they have trained on, and nobody can check it: one that says 2^53 would be the average
by itself. So an update counts for no more than a share of each component that several clients contribute to:

    w_i <= s / (1 - s) * (sum of the others' w),    w = examples * what an example of the task counts for

That is a function of what the round's updates say, whoever was faster. While a round is open the sums only grow: an
update that is within the limit by what is known already stays within it, and may be folded; another one waits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

from fedmtl_core.model.scopes import task_of


@dataclass(frozen=True)
class _Claim:
    """What one update says."""

    task: str
    num_examples: int
    scopes: tuple[str, ...]


class ClientShares:
    """What each update of a round counts as, in each of its components.

    Args:
        max_share: the most that one of several clients may be of a component, at least a half; None for no limit.
        factors: by auxiliary task, what an example of it counts for in what several tasks share.
        members: by client id, the scopes of those who may still contribute; None if anybody may.
    """

    def __init__(
        self,
        max_share: float | None,
        factors: Mapping[str, float] | None = None,
        members: Mapping[str, Collection[str]] | None = None,
    ):
        self._most = None if max_share is None else Fraction(max_share).limit_denominator(10**9)
        self._factors = factors or {}
        self._members = members
        self._claims: dict[str, _Claim] = {}
        self._totals: dict[str, int | Fraction] = {}
        self._is_closed = False

    def add(self, client_id: str, task: str, num_examples: int, scopes: Collection[str]) -> None:
        """Note an update that counts. It can't be folded before."""
        self._claims[client_id] = claim = _Claim(task, num_examples, tuple(scopes))
        for scope in claim.scopes:
            self._totals[scope] = self._totals.get(scope, 0) + self._weight(claim, scope)

    def close(self) -> None:
        """Note that no more updates come."""
        self._is_closed = True

    def is_settled(self, client_id: str) -> bool:
        """Whether what an update counts as doesn't depend on those that may still come."""
        if self._most is None or self._is_closed:
            return True
        claim = self._claims[client_id]
        return all(self._is_within(claim, scope) or self._is_alone(client_id, scope) for scope in claim.scopes)

    def counted(self, client_id: str) -> dict[str, Fraction]:
        """By scope, the examples that a settled update counts as, where these are less than it says."""
        if self._most is None:
            return {}
        claim = self._claims[client_id]
        counted = {}
        for scope in claim.scopes:
            others = self._totals[scope] - self._weight(claim, scope)
            if others and not self._is_within(claim, scope):
                weight = self._most / (1 - self._most) * others
                counted[scope] = weight / self._factor(claim, scope)
        return counted

    def _is_within(self, claim: _Claim, scope: str) -> bool:
        assert self._most is not None
        return self._weight(claim, scope) <= self._most * self._totals[scope]

    def _is_alone(self, client_id: str, scope: str) -> bool:
        """Whether no other client can contribute to a component."""
        if self._members is None:
            return False
        return not any(scope in scopes for member, scopes in self._members.items() if member != client_id)

    def _weight(self, claim: _Claim, scope: str) -> int | Fraction:
        return claim.num_examples * self._factor(claim, scope)

    def _factor(self, claim: _Claim, scope: str) -> int | Fraction:
        factor = 1.0 if task_of(scope) is not None else self._factors.get(claim.task, 1.0)
        return 1 if factor == 1 else Fraction(factor)
