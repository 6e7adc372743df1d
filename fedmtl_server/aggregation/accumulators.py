"""Accumulators, which combine a round's updates of one component: one by one, or all at once when the round ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component, Layout, TensorSpec
from fedmtl_server.aggregation.blocks import BlockReader

Weight = int | Fraction
"""An update's weight relative to the other updates. It is exact, so sums don't depend on the order of addition."""


class Accumulator(ABC):
    """Combines several clients' updates of one component.

    A component has one accumulator for each task if tasks are weighted, and otherwise a single accumulator.

    Args:
        layout: the component's layout.
    """

    copies: ClassVar[int] = 1
    """The largest number of components in memory, including the result. It determines the size of the buffer pool."""
    reads_blocks: ClassVar[bool] = False
    """Whether `close` reads all updates again. Their bytes must stay unchanged until then, so `add` never keeps a
    component's memory."""

    def __init__(self, layout: Layout):
        self.layout = layout

    @abstractmethod
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
        """Add one update.

        Args:
            component: the update's parameters; or its delta, if `base` is given.
            weight: the update's weight, finite and at least 0.
            base: the parameters to which the delta is added.
            scale: the factor on the delta.
            is_delta: False if `component` contains parameters although `base` is given; the delta is then the
                difference between the two.
            may_keep: whether the accumulator may overwrite the component's memory and keep it.

        Returns:
            Whether the component's memory is kept.

        Raises:
            LayoutMismatchError: the component has another layout.
        """

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the updates of another accumulator of the same class and layout, which stays unchanged.

        If the class `reads_blocks`, `close` needs the updates of both accumulators: first its own, then the other's.

        Raises:
            LayoutMismatchError: the other accumulator has another layout.
        """

    def close(self, blocks: BlockReader | None = None) -> None:  # noqa: B027
        """Finish after the last update. `runs` is final afterwards.

        Args:
            blocks: reads all updates again, in the order of `add`; None for a class without `reads_blocks`.

        Raises:
            AggregationError: a plug-in returned an invalid result.
            StoreError: an update can't be read.
        """

    @property
    @abstractmethod
    def runs(self) -> list[Tensor]:
        """The result as the flat vectors of the component's runs, in float32 (float64 for float64).

        The vectors are views: values written to them become part of the result.
        """

    @property
    @abstractmethod
    def buffer(self) -> Tensor:
        """The result's bytes."""

    @abstractmethod
    def result(self) -> Component:
        """Return the result in the layout's own dtypes. The accumulator can't be used afterwards."""

    def vector(self, spec: TensorSpec) -> Tensor:
        """Return one tensor of `runs` as a flat view."""
        for run, values in zip(self.layout.runs, self.runs, strict=True):
            if run.start <= spec.offset < run.end:
                first = (spec.offset - run.start) // spec.dtype.itemsize
                return values[first : first + spec.num_elements]
        return torch.empty(0)
