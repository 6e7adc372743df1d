"""Base class of task weightings, with its inputs and results. A weighting receives no tensors."""

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
"""Lower limit of losses where a weighting divides by them or takes their logarithm."""


@dataclass(frozen=True)
class TaskStats:
    """One round's statistics of a task with counted examples."""

    task: str
    num_examples: int | float
    """The counted examples of all the task's clients together; above 0."""
    received_loss: float | None = None
    """Loss of the round's initial model on the clients' evaluation data; None if no client reports it."""
    train_loss: float | None = None
    """Loss of the clients' models over the last epoch of the round; None if no client reports it."""


@dataclass(frozen=True)
class TaskRound:
    """The input of a weighting: one round. Tasks without updates are left out."""

    tasks: Sequence[TaskStats]
    """The tasks, sorted by name; at least one."""
    products: NDArray[np.float64] | None = None
    """Inner products of the tasks' deltas, `(tasks, tasks)`, in the order of `tasks`; None unless `needs_products`."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The weighting's state from the previous round; empty in the first."""
    seed: str = ""
    """A seed that differs in each round; it is the same when a round is computed again."""


@dataclass(frozen=True)
class Weighed:
    """The result of a weighting."""

    coefficients: Sequence[float]
    """The factors on the tasks' deltas before the deltas are added to the model; finite, in the order of `tasks`."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The weighting's state for the next round: JSON values without NaN."""


class TaskWeighting(ABC):
    """Base class of task weightings. To add one, derive a class in your own module and name it in the configuration.

    The same arguments must give the same result to the last bit, because a resumed run computes a round again.

    Args:
        settings: the configuration's section `aggregation`.
    """

    needs_products: bool = False
    """Whether the weighting needs `TaskRound.products`, which cost one pass over the deltas."""
    gives_shares: bool = False
    """Whether the coefficients always add up to 1, before `scaling`. The share that an auxiliary task loses through its
    weight then goes to the other tasks in proportion. Otherwise only the auxiliary task's coefficient changes."""

    def __init__(self, settings: AggregationConfig):
        self.settings = settings

    @abstractmethod
    def weigh(self, round_: TaskRound) -> Weighed:
        """Return the coefficients of the tasks' mean deltas in a round, before `scaling`."""


@dataclass(frozen=True)
class RoundWeighting:
    """A task weighting in one round, with its states."""

    weighting: TaskWeighting
    round: int = 0
    seed: int = 0
    """The run's seed."""
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By scope, the weighting's state from the previous round."""

    def weigh(self, scope: str, tasks: Sequence[TaskStats], products: NDArray[np.float64] | None) -> Weighed:
        """Return the coefficients of a round's tasks in a component, times a numeric `scaling`, and the new state.

        Raises:
            AggregationError: the weighting, which may be a plug-in, returned an invalid result.
        """
        seed = f"{self.seed}/{self.round}/{scope}"
        weighed = self.weighting.weigh(TaskRound(tasks, products, self.states.get(scope, {}), seed))
        try:
            coefficients = [float(one) for one in weighed.coefficients]
            state = json.loads(json.dumps(dict(weighed.state), allow_nan=False))
        except (TypeError, ValueError, AttributeError) as error:
            raise AggregationError(f"aggregation.task_weighting: expected numbers and a JSON state: {error}") from None
        if len(coefficients) != len(tasks) or not all(map(math.isfinite, coefficients)):
            raise AggregationError(
                f"aggregation.task_weighting: expected {len(tasks)} finite coefficients, got {coefficients}"
            )
        given = self.weighting.settings.scaling
        scaling = 1.0 if isinstance(given, str) else min(given, len(tasks))  # `preserve` comes after auxiliary weights
        return Weighed([scaling * one for one in coefficients], state)


def shares(weights: Sequence[float]) -> list[float]:
    """Return positive weights scaled to a sum of 1."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def softmax(logits: Sequence[float]) -> list[float]:
    """Return the softmax of logits: positive shares that add up to 1."""
    largest = max(logits)
    return shares([math.exp(logit - largest) for logit in logits])
