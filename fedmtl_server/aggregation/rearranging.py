"""Regrouping of parameters when the sharing of layers changes.

In a split, each block of tasks gets a copy of the shared parameters. In a merge, the shared parameters become the mean
of the blocks' parameters, weighted by the examples that each block's clients trained on in the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedmtl_core.model.sharing import SharingTable
from fedmtl_core.wire.layout import Component


def rearranged(
    components: Mapping[str, Component],
    before: SharingTable,
    after: SharingTable,
    num_examples: Mapping[str, float],
    prefix: str = "",
) -> dict[str, Component]:
    """Return the components of a new sharing table, made from the components of an old one.

    Args:
        components: the old components by scope; they stay unchanged.
        before: the old table.
        after: the new table.
        num_examples: by task, the counted examples of its clients. If none of a parameter's tasks has any, all tasks
            have the same weight.
        prefix: the prefix of the parameters' names in the components.

    Returns:
        All components of the new table, in its order. A component with unchanged tensors is the given object itself.
    """
    result = {}
    views = {scope: components[scope].views() for scope in before.scopes}
    for scope in after.scopes:
        names = after.tensors(scope)
        if scope in before.scopes and before.tensors(scope) == names:
            result[scope] = components[scope]
            continue
        tensors = {
            prefix + name: weighted_mean(
                [
                    (weight, views[source][prefix + name])
                    for source, weight in _sources(name, after.members(scope), before, num_examples).items()
                ]
            )
            for name in names
        }
        result[scope] = Component.pack(scope, tensors)
    return result


def _sources(
    name: str, members: Sequence[str], before: SharingTable, num_examples: Mapping[str, float]
) -> dict[str, float]:
    """Return the weight of each old scope in the mean of a parameter that some tasks share; weights are above 0."""
    weights: dict[str, float] = {}
    is_any = any(num_examples.get(task, 0) for task in members)
    for task in members:
        scope = before.by_task[task][name]
        weights[scope] = weights.get(scope, 0) + (num_examples.get(task, 0) if is_any else 1)
    total = sum(weights.values())
    return {scope: weight / total for scope, weight in weights.items() if weight}


def weighted_mean(values: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return the mean of tensors with weights that add up to 1; a single tensor is returned itself.

    Args:
        values: weights and tensors of one shape and dtype, which is the result's dtype; sums are in float64.
    """
    if len(values) == 1:
        return values[0][1]
    total = torch.zeros(values[0][1].shape, dtype=torch.float64)
    for weight, value in values:
        total.add_(value.to(torch.float64), alpha=weight)
    return total.to(values[0][1].dtype)
