"""The tasks' deltas of the last round, and the change of a task's parameters if its update had other sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.delta_products import preserving_factor, products_of
from fedmtl_server.sharing.source_selection import Sources


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in the precision of deltas: float64 for float64, otherwise float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


@dataclass(frozen=True)
class LastRound:
    """The tasks' deltas of the last round with an update."""

    round: int = 0
    deltas: Mapping[str, Component] = field(default_factory=dict)
    """By task, its delta of some parts, float32 (float64 for float64)."""
    products: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """By part, the inner products of the deltas, in their order."""

    @classmethod
    def of(cls, round_: int, deltas: Mapping[str, Component], parts: Mapping[str, Sequence[str]]) -> LastRound:
        """Return the last round with these deltas by task."""
        views = [one.views() for one in deltas.values()]
        return cls(
            round_,
            dict(deltas),
            {
                part: products_of([[one[name].flatten() for name in names] for one in views])
                for part, names in parts.items()
            },
        )

    def without_parts_but(self, parts: Mapping[str, Sequence[str]]) -> LastRound:
        """Return a copy that has only some of the parts."""
        names = [name for mine in parts.values() for name in mine]
        deltas = {}
        for task, component in self.deltas.items():
            views = component.views()
            deltas[task] = Component.pack(component.scope, {name: views[name] for name in names})
        return LastRound(self.round, deltas, {part: self.products[part] for part in parts})

    def cosine(self, task: str, other: str) -> float:
        """Return the cosine of two tasks' deltas over all parts; 0 if one of them is 0."""
        order = list(self.deltas)
        i, j = order.index(task), order.index(other)
        total = np.sum(list(self.products.values()), axis=0)
        norms = math.sqrt(total[i, i] * total[j, j])
        return float(total[i, j]) / norms if norms > 0 else 0.0

    def shift(self, parts: Mapping[str, Sequence[str]], task: str, now: Sources, then: Sources) -> dict[str, Tensor]:
        """Return the change of a task's parameters if its update had the mean of other sources.

        It is empty if the sources with a delta are the same.

        Args:
            parts: by part, the parameters.
            task: the task, which has a delta.
            now: the sources in effect.
            then: the other sources.
        """
        if task not in self.deltas or self.deltas.keys() & set(now) == self.deltas.keys() & set(then):
            return {}
        changes = {}
        for part in parts:
            before, after = self._coefficients(part, now), self._coefficients(part, then)
            changes[part] = {one: after.get(one, 0.0) - before.get(one, 0.0) for one in self.deltas}
        return self._combined(parts, changes)

    def shortening(self, parts: Mapping[str, Sequence[str]], task: str, now: Sources) -> dict[str, Tensor]:
        """Return the change of a task's parameters if its update had the share that it has in a mean with one more
        delta at right angles: √(k / (k + 1)) of its length for k sources with a delta.

        It is empty if the task has no delta.

        Args:
            parts: by part, the parameters.
            task: the task.
            now: the sources in effect.
        """
        if task not in self.deltas:
            return {}
        num_sources = len(self.deltas.keys() & set(now))
        change = math.sqrt(num_sources / (num_sources + 1)) - 1
        now_by_part = {part: self._coefficients(part, now) for part in parts}
        changes = {part: {one: change * value for one, value in mine.items()} for part, mine in now_by_part.items()}
        return self._combined(parts, changes)

    def _combined(
        self, parts: Mapping[str, Sequence[str]], coefficients: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Tensor]:
        """Return the sum of the deltas times their coefficients, which differ by part."""
        views = {one: component.views() for one, component in self.deltas.items()}
        combined = {}
        for part, names in parts.items():
            for name in names:
                value = torch.zeros_like(next(iter(views.values()))[name])
                for one, coefficient in coefficients[part].items():
                    if coefficient:
                        value.add_(views[one][name], alpha=coefficient)
                combined[name] = value
        return combined

    def _coefficients(self, part: str, sources: Sources) -> dict[str, float]:
        """Return the coefficients of the sources' deltas in a mean that keeps the mean of their norms."""
        present = [place for place, task in enumerate(self.deltas) if task in sources]
        products = self.products[part][np.ix_(present, present)]
        shares = np.full(len(present), 1 / len(present))
        factor = preserving_factor(shares, products) if len(present) > 1 else 1.0
        order = list(self.deltas)
        return {order[place]: factor / len(present) for place in present}
