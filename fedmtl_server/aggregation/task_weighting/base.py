"""What a task weighting is given, and what it answers with. It sees no tensors, and is a function of its arguments."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmtl_core.config import AggregationConfig
from fedmtl_core.errors import AggregationError

LEAST_LOSS = 1e-8
"""Losses are taken as at least that, where they are divided by or their logarithm is wanted."""


@dataclass(frozen=True)
class TaskFacts:
    """What is known of one task whose clients count in a round."""

    task: str
    num_examples: int | float
    """That its clients trained on, all together, as far as they count; above 0."""
    received_loss: float | None = None
    """Of the model that the round began with, on the clients' evaluation rows; None if no client says."""
    train_loss: float | None = None
    """Of their own models, over the last of the round's epochs; likewise."""


@dataclass(frozen=True)
class TaskRound:
    """One round, as a weighting sees it. A task without updates isn't in it."""

    tasks: Sequence[TaskFacts]
    """By name; at least one."""
    products: NDArray[np.float64] | None = None
    """Inner products of the tasks' deltas, `(tasks, tasks)`, in that order; only for weightings that need them."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the weighting remembered in the round before; empty in the first."""
    seed: str = ""
    """Another one in each round; the same when a round is computed again."""


@dataclass(frozen=True)
class Weighed:
    """What each task counts for."""

    coefficients: Sequence[float]
    """What each task's delta is multiplied with before they are added to the model; in the round's order, finite."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """For the next round: what JSON can carry, without NaN."""


class TaskWeighting(ABC):
    """What each task counts for in the encoder; to be derived from in a file of one's own, which the configuration
    names.

    The same arguments must give the same result to the last bit: a run that is taken up computes a round again.

    Args:
        settings: the configuration's section `aggregation`.
    """

    needs_products: bool = False
    """Whether it looks at the deltas: `TaskRound.products` cost a pass over them."""
    gives_shares: bool = False
    """Whether its coefficients always add up to 1, before `scaling`. What an auxiliary task's weight takes from it then
    goes to the others, in proportion; else its coefficient is multiplied, and theirs stay as they are."""

    def __init__(self, settings: AggregationConfig):
        self.settings = settings

    @abstractmethod
    def weigh(self, round_: TaskRound) -> Weighed:
        """What each task's delta, the mean over its clients, counts for in this round; `scaling` comes on top of it."""


@dataclass(frozen=True)
class RoundWeighting:
    """What each task counts for in one round."""

    weighting: TaskWeighting
    round: int = 0
    seed: int = 0
    """The run's."""
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By scope, what the weighting remembered in the round before."""

    def weigh(self, scope: str, facts: Sequence[TaskFacts], products: NDArray[np.float64] | None) -> Weighed:
        """What the tasks of a round count for in a component.

        Raises:
            AggregationError: the weighting, which may be a user's own, answers with something else.
        """
        seed = f"{self.seed}/{self.round}/{scope}"
        weighed = self.weighting.weigh(TaskRound(facts, products, self.states.get(scope, {}), seed))
        try:
            coefficients = [float(one) for one in weighed.coefficients]
            state = json.loads(json.dumps(dict(weighed.state), allow_nan=False))
        except (TypeError, ValueError, AttributeError) as error:
            raise AggregationError(f"aggregation.task_weighting: expected numbers and a JSON state: {error}") from None
        if len(coefficients) != len(facts) or not all(map(math.isfinite, coefficients)):
            raise AggregationError(
                f"aggregation.task_weighting: expected {len(facts)} finite coefficients, got {coefficients}"
            )
        scaling = min(self.weighting.settings.scaling, len(facts))
        return Weighed([scaling * one for one in coefficients], state)


def shares(weights: Sequence[float]) -> list[float]:
    """Positive weights, scaled to a sum of 1."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def softmax(logits: Sequence[float]) -> list[float]:
    """Positive shares that sum to 1, whose logarithms differ as the logits do."""
    largest = max(logits)
    return shares([math.exp(logit - largest) for logit in logits])
