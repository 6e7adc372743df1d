"""The running weighted mean of a component. Updates stay unchanged unless their memory may be kept."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.accumulators import Accumulator, Weight
from fedmtl_server.aggregation.wide import WideComponent, counted_values

_BLOCK = 2**19
"""Number of elements per block where values must be copied."""


class ComponentMean(Accumulator):
    """A running weighted mean of one component, in float32 (float64 for float64 tensors).

    Each update moves the mean towards itself by its share of the weight so far (West 1979,
    doi:10.1145/359146.359153). This takes one pass at memory bandwidth and no division at the end, and the mean of
    equal updates is exactly that update.

    If the first component may be kept, its memory becomes the mean's, without a copy.
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
        """Return the mean of at least one update with a weight, in the layout's own dtypes.

        The mean can't be changed afterwards.
        """
        assert self._mean is not None
        return self._mean.narrowed()

    def _placed_in(self, component: Component | None) -> WideComponent:
        """Return a mean in a component's memory, whose bytes are arbitrary; in new memory if None."""
        return WideComponent(component or Component(self.layout, torch.empty(self.layout.num_bytes, dtype=torch.uint8)))

    def _shares(self, weight: Weight) -> tuple[float, float]:
        """Add a weight to the total; return its share and the old total's share of the new total."""
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
    """Add one flat vector, relative to a base if given, to a mean in place; shares as in `_move_towards`."""
    if origin is None and run.dtype == mean.dtype:
        _move_towards(mean, run, share, rest)
        return
    for start in range(0, len(mean), _BLOCK):  # intermediate values stay in the cache
        block = slice(start, start + _BLOCK)
        value = counted_values(run[block], None if origin is None else origin[block], scale, is_delta)
        _move_towards(mean[block], value, share, rest)


def _move_towards(mean: Tensor, value: Tensor, share: float, rest: float) -> None:
    """Add one value to a mean in place.

    The interpolation starts from the operand with the larger share, because the smaller share keeps its precision when
    it is rounded to the tensors' dtype.

    Args:
        share: the value's share, from 0 to 1.
        rest: the mean's share; if it is 0, the mean's content is arbitrary.
    """
    if rest == 0:
        mean.copy_(value)
    elif share < rest:
        mean.lerp_(value, share)
    else:
        torch.lerp(value, mean, rest, out=mean)
