"""Auxiliary tasks: they shape the encoder for the sake of the others (Caruana 1997, doi:10.1023/A:1007379606734; Ruder
2017, arXiv:1706.05098).

How well they do themselves is nobody's goal, so that no round needs them and no run ends with them. What they count for
in the encoder may be less than what they train on, and less from round to round, until the others have it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Auxiliary:
    """What an auxiliary task counts for in what several tasks share."""

    weight: float = 1.0
    """What an example of it counts for in the first round, against 1 of another task's; at least 0."""
    decay: float = 1.0
    """What the weight is multiplied with from round to round; above 0, and 1 at most."""

    def factor(self, round_: int) -> float:
        """What an example counts for in a round, counted from 1: weight · decay^(round - 1). 0 once it is too small
        to be told from it."""
        return self.weight * self.decay ** (round_ - 1)


def factors(auxiliary: Mapping[str, Auxiliary], round_: int) -> dict[str, float]:
    """By auxiliary task, what an example of it counts for in a round."""
    return {task: one.factor(round_) for task, one in auxiliary.items()}


def scaled(coefficients: Mapping[str, float], factors: Mapping[str, float], *, are_shares: bool) -> dict[str, float]:
    """What tasks count for by a task weighting, with what is taken from the auxiliary ones.

    Args:
        coefficients: by task, the weighting's.
        factors: by auxiliary task, what each is multiplied with; not all of the tasks' are 0.
        are_shares: whether they are shares of what they add up to, and are to add up to the same afterwards.

    Returns:
        By task. The coefficients themselves, to the last bit, if no task among them has another factor than 1.
    """
    if all(factors.get(task, 1.0) == 1 for task in coefficients):
        return dict(coefficients)
    products = {task: coefficient * factors.get(task, 1.0) for task, coefficient in coefficients.items()}
    total = sum(products.values())
    if not (are_shares and total):
        return products
    whole = sum(coefficients.values())
    return {task: whole * (product / total) for task, product in products.items()}
