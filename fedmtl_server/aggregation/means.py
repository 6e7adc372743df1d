"""The running weighted mean of a component. The updates come back unchanged, unless they may be kept."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.accumulators import Accumulator, Weight
from fedmtl_server.aggregation.wide import WideComponent, counted_values

_BLOCK = 2**19
"""Elements that are computed with at a time where there is a copy to make."""


class ComponentMean(Accumulator):
    """A running weighted mean of one component, in float32 (float64 for float64 tensors).

    Each update moves the mean towards itself by its share of the weight so far (West 1979,
    doi:10.1145/359146.359153): one pass at memory bandwidth, nothing to divide at the end, and equal updates
    average to exactly themselves.

    The first component that may be kept becomes the mean's own memory, without a copy.
    """

    def __init__(self, layout: Layout):
        super().__init__(layout)
        self._mean: WideComponent | None = None
        self._total: Weight = 0

    def add(
        self,
        component: Component,
        weight: Weight,
        base: Component | None = None,
        scale: float = 1.0,
        *,
        is_delta: bool = True,
        may_keep: bool = False,
    ) -> bool:
        self.layout.require_same(component.layout)
        if base is not None:
            self.layout.require_same(base.layout)
        keeps = self._mean is None and may_keep and weight > 0
        if self._mean is None:
            self._mean = self._placed_in(component if keeps else None)
        if weight == 0:
            return False
        share, rest = self._shares(weight)
        base_runs = base.runs() if base else [None] * len(self.runs)
        for mean, run, origin in zip(self.runs, component.runs(), base_runs, strict=True):
            _add_run(mean, run, origin, share, rest, scale, is_delta)
        return keeps

    def merge(self, other: Self) -> None:
        self.layout.require_same(other.layout)
        if self._mean is None:
            self._mean = self._placed_in(None)
        if other._total == 0:
            return
        share, rest = self._shares(other._total)
        for mean, value in zip(self.runs, other.runs, strict=True):
            _move_towards(mean, value, share, rest)

    @property
    def runs(self) -> list[Tensor]:
        return self._mean.runs if self._mean else []

    @property
    def buffer(self) -> Tensor:
        assert self._mean is not None
        return self._mean.buffer

    def result(self) -> Component:
        """The mean of at least one update with a weight, in the layout's own dtypes. Nothing can be added after."""
        assert self._mean is not None
        return self._mean.narrowed()

    def _placed_in(self, component: Component | None) -> WideComponent:
        """Begin in a component's memory, whose bytes may hold anything; in new memory if None."""
        return WideComponent(component or Component(self.layout, torch.empty(self.layout.num_bytes, dtype=torch.uint8)))

    def _shares(self, weight: Weight) -> tuple[float, float]:
        """Of the weight with what is new: the share of what is new, and the share of what was there before."""
        before, self._total = self._total, self._total + weight
        return float(weight / self._total), float(before / self._total)


def _add_run(
    mean: Tensor,
    run: Tensor,
    origin: Tensor | None,
    share: float,
    rest: float,
    scale: float,
    is_delta: bool,
) -> None:
    """Take one flat vector, and what it is relative to, into a mean, in place; shares as of `_move_towards`."""
    if origin is None and run.dtype == mean.dtype:
        _move_towards(mean, run, share, rest)
        return
    for start in range(0, len(mean), _BLOCK):  # what has to be computed first stays in the cache
        block = slice(start, start + _BLOCK)
        value = counted_values(run[block], None if origin is None else origin[block], scale, is_delta)
        _move_towards(mean[block], value, share, rest)


def _move_towards(mean: Tensor, value: Tensor, share: float, rest: float) -> None:
    """Take one value into a mean, in place.

    The step is taken from whichever of the two weighs more: the smaller share is the one that keeps its precision
    when it is rounded to the tensors' dtype.

    Args:
        share: the value's, in 0 to 1.
        rest: what was in the mean before; where it is 0 the mean may hold anything.
    """
    if rest == 0:
        mean.copy_(value)
    elif share < rest:
        mean.lerp_(value, share)
    else:
        torch.lerp(value, mean, rest, out=mean)
