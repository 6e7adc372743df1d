"""Auxiliary tasks: they shape the encoder for the sake of the others (Caruana 1997, doi:10.1023/A:1007379606734; Ruder
2017, arXiv:1706.05098).

How well they do themselves is nobody's goal, so that no round needs them and no run ends with them. What they count for
in the encoder may be less than what they train on, and less from round to round, until the others have it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedmtl_core.config import AuxiliaryConfig
from fedmtl_core.config.stages import AUXILIARY
from fedmtl_server.aggregation.stages.base import Combination, Group, Stage


class AuxiliaryTasks(Stage):
    """Has auxiliary tasks count for less, or more, than their examples in what several tasks share.

    Args:
        sections: by auxiliary task, its section of the configuration.
    """

    rule = AUXILIARY

    def __init__(self, sections: Mapping[str, AuxiliaryConfig]):
        self._sections = sections

    def factors(self, round_: int) -> dict[str, float]:
        return {task: factor(section, round_) for task, section in self._sections.items()}

    def combine(self, group: Group, combination: Combination) -> Combination:
        """Where tasks have a mean each, their weight isn't in it yet."""
        if not group.is_by_task:
            return combination
        shares = scaled(combination.shares, group.factors.by_task, are_shares=combination.are_shares)
        return replace(combination, shares=shares)


def factor(section: AuxiliaryConfig, round_: int) -> float:
    """What an example of an auxiliary task counts for in a round, counted from 1: weight · decay^(round - 1). 0 once it
    is too small to be told from it."""
    return section.weight * section.decay ** (round_ - 1)


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
