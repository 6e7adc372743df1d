"""The coordinate-wise median (Yin et al. 2018, arXiv:1803.01498): a minority of clients can't move a number at will."""

from __future__ import annotations

from torch import Tensor

from fedmtl_server.aggregation.rules import BlockContext, BlockRule


class Median(BlockRule):
    """Sets each of the model's numbers to the median of the clients' numbers, whatever their numbers of examples."""

    def aggregate(self, values: Tensor, weights: Tensor, context: BlockContext) -> Tensor:
        ordered = values.sort(dim=0).values
        middle = len(ordered) // 2
        if len(ordered) % 2:
            return ordered[middle]
        return ordered[middle - 1].lerp(ordered[middle], 0.5)
