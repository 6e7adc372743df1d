"""Rules that make a component of all its updates at once, where that isn't their mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedmtl_core.config import AggregationConfig
from fedmtl_core.plugins import Registry


@dataclass(frozen=True)
class BlockContext:
    """Which updates a rule is given, and of what."""

    round: int
    """Counted from 1."""
    scope: str
    """The component: `shared`, `group:NAME`, or `task:NAME` for what one task has for itself."""
    client_ids: Sequence[str]
    """By row, whose update it is; in the cohort's order, whoever was faster."""
    tasks: Sequence[str]
    """By row, the client's task."""
    base: Tensor | None
    """The model's own values, `(block,)`, in the dtype of the updates'; None if it has no such component."""


class BlockRule(ABC):
    """What a round's updates come to; to be derived from in a file of one's own, which the configuration names.

    It is called for one block of a component after the other. Where blocks begin and end follows from the component and
    the number of updates. The same arguments must give the same result to the last bit: a run that is taken up computes
    a round again.

    Args:
        settings: the configuration's section `aggregation`.
    """

    def __init__(self, settings: AggregationConfig):
        self.settings = settings

    @abstractmethod
    def aggregate(self, values: Tensor, weights: Tensor, context: BlockContext) -> Tensor:
        """Make one value of those that the updates have, for each element of a block.

        Args:
            values: float32 (float64 for parameters in float64), `(updates, block)`: the parameters that each update
                comes to. Those of a delta are added to the model's; a norm that is clipped and a discount for staleness
                are in them. Its memory is used again after the call; until then it may be overwritten.
            weights: float64 `(updates,)`, above 0: the examples that each update counts as, times the weight of its
                task if that is auxiliary. Updates that count for nothing aren't there.
            context: which updates they are.

        Returns:
            `(block,)`, in the dtype of `values`. A component that isn't finite stays what it was.
        """


RULES = Registry("aggregation.rule", BlockRule, {})  # type: ignore[type-abstract]


def make_rule(section: AggregationConfig) -> BlockRule | None:
    """The rule that a configuration names; None for the running mean, which needs one update at a time.

    Raises:
        ConfigError: a user's own class can't be loaded or constructed.
    """
    return None if section.rule == "mean" else RULES.make(section.rule, section)
