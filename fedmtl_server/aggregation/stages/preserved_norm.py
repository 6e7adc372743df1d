"""The stage that preserves the norm of the tasks' deltas in shared parts (`aggregation.scaling: preserve`).

The weighted mean of deltas that point in different directions is shorter than the deltas: for T deltas of equal norm at
right angles, by the square root of T. The stage multiplies the mean Σ c Δ, where the shares c add up to 1, by

    Σ c ‖Δ‖ / ‖Σ c Δ‖,

so that its norm is the weighted mean of the deltas' norms. The factor is at least 1 by the triangle inequality. For
deltas without conflict, whose inner products are at least 0, it is at most √T by the inequality of Cauchy and Schwarz.
Where deltas oppose each other, their mean can be close to 0, and the factor is limited to √T.

FedExP (Jhunjhunwala et al. 2023, arXiv:2301.09604) is the related rule for the clients of a single task: its factor is
max(1, Σ ‖Δ‖² / (2 M ‖Δ̄‖²)) over M clients and the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fedmtl_core.config.stages import SCALING
from fedmtl_server.aggregation.delta_products import inner_products_of, preserving_factor
from fedmtl_server.aggregation.stages.base import Combination, Group, ScaledPart, Stage

ENCODER = "encoder"
"""The part of all parameters whose part isn't known."""


class PreservedNorm(Stage):
    """Scales the combined delta of each shared part of the encoder to the weighted mean of the tasks' norms.

    It comes after the stages that weight tasks. Their coefficients determine only the direction: they are divided by
    the sum of their absolute values, which changes nothing for shares.

    Args:
        parts: by parameter name, its part of the encoder. All other parameters form one part, `encoder`.
    """

    rule = SCALING
    needs_task_means = True

    def __init__(self, parts: Mapping[str, str] = MappingProxyType({})):
        self._parts = parts

    def combine(self, group: Group, combination: Combination) -> Combination:
        total = math.fsum(abs(share) for share in combination.shares.values())
        if not group.is_by_task or not total:
            return combination
        shares = {task: share / total for task, share in combination.shares.items()}
        scaled_parts = self._scaled_parts(group, shares, combination.multipliers)
        return replace(combination, shares=shares, scaled_parts=scaled_parts)

    def _scaled_parts(
        self, group: Group, shares: Mapping[str, float], multipliers: Mapping[str, float]
    ) -> list[ScaledPart]:
        """Return the factor of each part in a component; none if only one task has weight."""
        tasks = [task for task in group.tasks if shares[task]]
        if len(tasks) < 2:
            return []
        coefficients = np.array([shares[task] for task in tasks])
        scales = np.array([multipliers[task] for task in tasks])
        return [
            ScaledPart(
                part, names, preserving_factor(coefficients, _products(group, tasks, names) * np.outer(scales, scales))
            )
            for part, names in self._names(group).items()
        ]

    def _names(self, group: Group) -> dict[str, list[str]]:
        """Return the names of a component's tensors by part, in the component's order."""
        assert group.base is not None
        names: dict[str, list[str]] = {}
        for spec in group.base.layout.tensors:
            names.setdefault(self._parts.get(spec.name, ENCODER), []).append(spec.name)
        return names


def _products(group: Group, tasks: Sequence[str], names: Sequence[str]) -> NDArray[np.float64]:
    """Return the inner products of the tasks' differences from the base in some tensors, `(tasks, tasks)`."""
    deltas = [group.base_and_mean(task, frozenset(names)) for task in tasks]
    return inner_products_of([delta for delta in deltas if delta is not None])
