"""An accumulator that applies a rule to all updates of a component, block by block, when the round closes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from fedmtl_core.errors import AggregationError
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.accumulators import Accumulator, Weight
from fedmtl_server.aggregation.blocks import BlockReader
from fedmtl_server.aggregation.rules import BlockContext, BlockRule
from fedmtl_server.aggregation.wide import WideComponent, wide

MAX_ELEMENTS = 2**22
"""Number of elements of all updates that are in memory at a time: 16 MiB of float32, whatever the number of updates."""


class RuleAccumulator(Accumulator):
    """Applies a rule to all updates of a component when the round closes. Until then it stores only their weights.

    Args:
        layout: the component's layout.
        rule: the aggregation rule.
        round_: the number of the round.
    """

    reads_blocks = True

    def __init__(self, layout: Layout, rule: BlockRule, round_: int = 1):
        super().__init__(layout)
        self._rule = rule
        self._round = round_
        self._weights: list[Weight] = []
        self._result: WideComponent | None = None

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
        self._weights.append(weight)
        return False

    def merge(self, other: Self) -> None:
        self.layout.require_same(other.layout)
        self._weights += other._weights

    def close(self, blocks: BlockReader | None = None) -> None:
        assert blocks is not None
        weighted = list(zip(self._weights, blocks.updates, strict=True))
        rows = [row for row, (weight, _) in enumerate(weighted) if weight]
        if not rows:
            return
        weights = torch.tensor([float(weighted[row][0]) for row in rows], dtype=torch.float64)
        client_ids = tuple(weighted[row][1].client_id for row in rows)
        tasks = tuple(weighted[row][1].task for row in rows)
        self._result = WideComponent(Component(self.layout, torch.empty(self.layout.num_bytes, dtype=torch.uint8)))
        for run, start, values in self._values(blocks, rows):
            stop = start + values.shape[1]
            base = blocks.base_values(run, start, stop)
            own = None if base is None else base.to(values.dtype, copy=True)
            context = BlockContext(self._round, self.layout.scope, client_ids, tasks, own)
            answer = self._rule.aggregate(values, weights.clone(), context)
            _require_block(self._rule, self.layout.scope, answer, values)
            self.runs[run][start:stop] = answer

    @property
    def runs(self) -> list[Tensor]:
        return self._result.runs if self._result else []

    @property
    def buffer(self) -> Tensor:
        assert self._result is not None
        return self._result.buffer

    def result(self) -> Component:
        assert self._result is not None
        return self._result.narrowed()

    def _values(self, blocks: BlockReader, rows: Sequence[int]) -> Iterator[tuple[int, int, Tensor]]:
        """Read the component's blocks one by one, into the same memory.

        Yields:
            The number of the block's run, the block's first element in it, and the updates' values: `(rows, block)`.
        """
        size = max(1, MAX_ELEMENTS // len(rows))
        for number, run in enumerate(self.layout.runs):
            length = (run.end - run.start) // run.dtype.itemsize
            memory = torch.empty(len(rows) * min(size, length), dtype=wide(run.dtype))
            for start in range(0, length, size):
                stop = min(start + size, length)
                values = memory[: len(rows) * (stop - start)].view(len(rows), stop - start)
                for place, row in enumerate(rows):
                    values[place] = blocks.read(row, number, start, stop)
                yield number, start, values


def _require_block(rule: BlockRule, scope: str, answer: object, values: Tensor) -> None:
    """Check the result of a rule, which may be a plug-in.

    Raises:
        AggregationError: the result isn't one value for each element.
    """
    expected = _described(values[0])
    got = _described(answer) if isinstance(answer, Tensor) else type(answer).__name__
    if got != expected:
        raise AggregationError(
            f"aggregation.rule: {type(rule).__name__} for {scope}: expected a tensor of {expected}, got {got}"
        )


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
