"""What makes one component of a round's updates: one by one as they come, or of all at once when the round ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component, Layout, TensorSpec
from fedmtl_server.aggregation.blocks import BlockReader

Weight = int | Fraction
"""What an update counts for beside the others: exact, so that sums don't depend on the order of addition."""


class Accumulator(ABC):
    """Makes one component of several clients' updates of it.

    A component whose tasks are weighted has one accumulator for each task, any other component has one alone.

    Args:
        layout: of the component.
    """

    copies: ClassVar[int] = 1
    """How many components it keeps in memory at most, its result among them. The buffer pool is sized by it."""
    reads_blocks: ClassVar[bool] = False
    """Whether it reads all updates when it is closed. Their bytes have to stay as they are until then, so that it keeps
    no component that is added."""

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
        """Take in one update.

        Args:
            component: its parameters; or its delta, if `base` is given.
            weight: at least 0, finite; what it counts for beside the others.
            base: the parameters that the delta is to be added to.
            scale: what the delta is multiplied with.
            is_delta: False for parameters in spite of a base: what they differ from it by is the delta.
            may_keep: whether the component's memory may be overwritten and used from now on.

        Returns:
            Whether the component's memory is kept.

        Raises:
            LayoutMismatchError: it is laid out otherwise.
        """

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what another accumulator of the same kind and layout has taken in, which stays as it is.

        What reads blocks has to be given those of both when it is closed: its own first, then the other's.

        Raises:
            LayoutMismatchError: it is laid out otherwise.
        """

    def close(self, blocks: BlockReader | None = None) -> None:  # noqa: B027
        """Note that all updates were added: `runs` is final from now on.

        Args:
            blocks: all updates again, in the order in which they were added, for an accumulator that `reads_blocks`;
                None for others.

        Raises:
            AggregationError: a class of the user's own answers with something else than it should.
            StoreError: an update can't be read.
        """

    @property
    @abstractmethod
    def runs(self) -> list[Tensor]:
        """What the updates come to, as the flat vectors of the component's runs, in float32 (float64 for float64).

        They are views: what is written to them becomes part of the result.
        """

    @property
    @abstractmethod
    def buffer(self) -> Tensor:
        """The result's bytes."""

    @abstractmethod
    def result(self) -> Component:
        """What the updates come to, in the layout's own dtypes. The accumulator can't be used afterwards."""

    def vector(self, spec: TensorSpec) -> Tensor:
        """One tensor of `runs`, flat; as a view."""
        for run, values in zip(self.layout.runs, self.runs, strict=True):
            if run.start <= spec.offset < run.end:
                first = (spec.offset - run.start) // spec.dtype.itemsize
                return values[first : first + spec.num_elements]
        return torch.empty(0)
