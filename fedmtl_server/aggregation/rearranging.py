"""Moving parameters between scopes: the same numbers in other components.

Where tasks part, each gets a copy of what they shared. Where they come together, what they share from now on is the
mean of what each block of them had, weighted by the examples that its clients trained on in the round.
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
    """Components by one table, made of those by another.

    Args:
        components: those there are, by scope; they stay as they are.
        before: by which they are laid out.
        after: by which the new ones are to be.
        num_examples: by task, what its clients trained on, as far as it counts. Where none of a parameter's tasks has
            any, all count alike.
        prefix: what the components have before the parameters' names.

    Returns:
        All of the new table's, in its order; those whose tensors are the same are the very components given.
    """
    result = {}
    there = {scope: components[scope].views() for scope in before.scopes}
    for scope in after.scopes:
        names = after.tensors(scope)
        if scope in before.scopes and before.tensors(scope) == names:
            result[scope] = components[scope]
            continue
        tensors = {
            prefix + name: _mean(
                [
                    (weight, there[source][prefix + name])
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
    """By scope that a parameter of some tasks is in, what it counts for; above 0."""
    weights: dict[str, float] = {}
    is_any = any(num_examples.get(task, 0) for task in members)
    for task in members:
        scope = before.by_task[task][name]
        weights[scope] = weights.get(scope, 0) + (num_examples.get(task, 0) if is_any else 1)
    total = sum(weights.values())
    return {scope: weight / total for scope, weight in weights.items() if weight}


def _mean(values: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The mean of tensors by their weights, which sum to 1; of a single one itself."""
    if len(values) == 1:
        return values[0][1]
    total = torch.zeros(values[0][1].shape, dtype=torch.float64)
    for weight, value in values:
        total.add_(value.to(torch.float64), alpha=weight)
    return total.to(values[0][1].dtype)
