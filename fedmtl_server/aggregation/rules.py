"""Aggregation rules that compute a component from all of its updates at once, in place of their mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedmtl_core.config import AggregationConfig
from fedmtl_core.plugins import Registry


@dataclass(frozen=True)
class BlockContext:
    """The round, component and clients of the updates that a rule receives."""

    round: int
    """The round's number, counted from 1."""
    scope: str
    """The component's scope: `shared`, `group:NAME`, or `task:NAME` for the parameters of one task."""
    client_ids: Sequence[str]
    """By row, the client that sent the update. Rows are in cohort order, not in order of arrival."""
    tasks: Sequence[str]
    """By row, the task of the client."""
    base: Tensor | None
    """The model's values, `(block,)`, in the dtype of the updates' values; None if the model has no such component."""


class BlockRule(ABC):
    """Base class of aggregation rules. To add one, derive a class in your own module and name it in the configuration.

    `aggregate` is called for one block of a component after another. The component and the number of updates determine
    the blocks' boundaries. The same arguments must give the same result to the last bit, because a resumed run computes
    a round again.

    Args:
        settings: the configuration's section `aggregation`.
    """

    def __init__(self, settings: AggregationConfig):
        self.settings = settings

    @abstractmethod
    def aggregate(self, values: Tensor, weights: Tensor, context: BlockContext) -> Tensor:
        """Compute one value from the updates' values, for each element of a block.

        Args:
            values: float32 (float64 for parameters in float64), `(updates, block)`: the parameters of each update.
                Deltas are already added to the model; norm clipping and staleness discounts are included. The rule may
                overwrite `values` until it returns; the memory is reused afterwards.
            weights: float64 `(updates,)`, above 0: the number of examples of each update, times the weight of its task
                if the task is auxiliary. Updates with a weight of 0 are left out.
            context: the round, component and clients of the updates.

        Returns:
            `(block,)`, in the dtype of `values`. A component with a non-finite result keeps its old value.
        """


RULES = Registry("aggregation.rule", BlockRule, {})  # type: ignore[type-abstract]


def make_rule(section: AggregationConfig) -> BlockRule | None:
    """Return the rule that a configuration names; None for the running mean.

    Raises:
        ConfigError: a custom class can't be loaded or constructed.
    """
    return None if section.rule == "mean" else RULES.make(section.rule, section)
