"""Auxiliary tasks, which train the encoder only to improve other tasks.

See Caruana 1997, doi:10.1023/A:1007379606734, and Ruder 2017, arXiv:1706.05098. The metrics of auxiliary tasks don't
matter, so no round waits for them and no run ends because of them. Their weight in the encoder can be lower than their
number of examples, and can decay from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedmtl_core.config import AuxiliaryConfig
from fedmtl_core.config.stages import AUXILIARY
from fedmtl_server.aggregation.stages.base import Combination, Group, Stage


class AuxiliaryTasks(Stage):
    """Scales the weights of auxiliary tasks in components that several tasks share.

    Args:
        sections: by auxiliary task, its section of the configuration.
    """

    rule = AUXILIARY

    def __init__(self, sections: Mapping[str, AuxiliaryConfig]):
        self._sections = sections

    def factors(self, round_: int) -> dict[str, float]:
        return {task: factor(section, round_) for task, section in self._sections.items()}

    def combine(self, group: Group, combination: Combination) -> Combination:
        """Scale the tasks' shares if each task has a mean of its own; other means already include the factors."""
        if not group.is_by_task:
            return combination
        shares = scaled(combination.shares, group.factors.by_task, are_shares=combination.are_shares)
        return replace(combination, shares=shares)


def factor(section: AuxiliaryConfig, round_: int) -> float:
    """Return the factor of an auxiliary task's examples in a round, counted from 1: weight · decay^(round - 1).

    The factor is 0 once it is too small for a float.
    """
    return section.weight * section.decay ** (round_ - 1)


def scaled(coefficients: Mapping[str, float], factors: Mapping[str, float], *, are_shares: bool) -> dict[str, float]:
    """Return a task weighting's coefficients after multiplication by the factors of auxiliary tasks.

    Args:
        coefficients: by task, the weighting's coefficients.
        factors: by auxiliary task, its factor; at least one task has a factor other than 0.
        are_shares: whether the coefficients are shares, whose sum must stay the same.

    Returns:
        The coefficients by task; unchanged to the last bit if all tasks have the factor 1.
    """
    if all(factors.get(task, 1.0) == 1 for task in coefficients):
        return dict(coefficients)
    products = {task: coefficient * factors.get(task, 1.0) for task, coefficient in coefficients.items()}
    total = sum(products.values())
    if not (are_shares and total):
        return products
    whole = sum(coefficients.values())
    return {task: whole * (product / total) for task, product in products.items()}
