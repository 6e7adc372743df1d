"""Merging the accumulators of a component, one for each task or a single one, into the component's new value."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.accumulators import Accumulator
from fedmtl_server.aggregation.delta_products import combine
from fedmtl_server.aggregation.stages.base import Combination, Group, ScaledPart


def merge(group: Group, combination: Combination) -> tuple[Component, list[Tensor]]:
    """Return the base's component plus the accumulators' differences from it, each times its coefficient.

    The result is in the memory of the first accumulator. The accumulators can't be used afterwards.

    Returns:
        The component, and the buffers of the other accumulators.
    """
    coefficients = [combination.shares[key] * combination.multipliers[key] for key in group.keys]
    first, *others = [group.accumulators[key] for key in group.keys]
    if not group.is_by_task and coefficients == [1.0]:
        return first.result(), []
    assert group.base is not None
    if combination.scaled_parts:
        _combine_parts(group.base, [first, *others], coefficients, combination.scaled_parts)
    else:
        for run, *means in zip(group.base.runs(), first.runs, *(one.runs for one in others), strict=True):
            combine(run, means, coefficients)
    return first.result(), [one.buffer for one in group.accumulators.values() if one is not first]


def _combine_parts(
    base: Component, accumulators: Sequence[Accumulator], coefficients: Sequence[float], parts: Sequence[ScaledPart]
) -> None:
    """Overwrite the first accumulator's values with base + factor Σ coefficient (value - base), part by part."""
    factors = {name: part.factor for part in parts for name in part.names}
    views = base.views()
    for spec in base.layout.tensors:
        scaled = [factors[spec.name] * one for one in coefficients]
        combine(views[spec.name].flatten(), [one.vector(spec) for one in accumulators], scaled)
