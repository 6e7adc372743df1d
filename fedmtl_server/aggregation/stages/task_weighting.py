"""The stage that weights tasks in shared components (`aggregation.task_weighting`)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from fedmtl_core.config.stages import TASK_WEIGHTING
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import task_of
from fedmtl_core.wire.layout import Layout
from fedmtl_server.aggregation.accumulators import Weight
from fedmtl_server.aggregation.delta_products import inner_products
from fedmtl_server.aggregation.stages.base import Combination, Ending, Group, Outcome, Stage
from fedmtl_server.aggregation.task_weighting.base import RoundWeighting, TaskStats, TaskWeighting
from fedmtl_server.aggregation.values import RoundContext, ScreenedUpdate, StageState


class TaskWeights(Stage):
    """Accumulates shared components separately for each task, and adds the weighted sum of the tasks' deltas.

    Args:
        weighting: computes the tasks' coefficients.
        seed: the run's seed, for weightings with a random choice.
    """

    rule = TASK_WEIGHTING
    needs_task_means = True

    def __init__(self, weighting: TaskWeighting, seed: int = 0):
        self._weighting = weighting
        self._seed = seed
        self._states: dict[str, JsonObject] = {}
        self._new: dict[str, JsonObject] = {}
        self._context = RoundContext()

    def begin(self, context: RoundContext) -> None:
        self._context, self._new = context, {}

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        shared = [scope for scope in update.components if task_of(scope) is None]
        self._context.require_base(update, shared, "weighting tasks")
        return update

    def combine(self, group: Group, combination: Combination) -> Combination:
        if not group.is_by_task:
            return combination
        products = None
        if self._weighting.needs_products:
            assert group.base is not None
            products = inner_products(group.base, [group.accumulators[task].runs for task in group.tasks])
            factors = [combination.multipliers[task] for task in group.tasks]
            products *= np.outer(factors, factors)
        weighting = RoundWeighting(self._weighting, self._context.round, self._seed, self._states)
        weighed = weighting.weigh(group.scope, _task_stats(group), products)
        self._new[group.scope] = weighed.state
        shares = dict(zip(group.tasks, weighed.coefficients, strict=True))
        return replace(combination, shares=shares, are_shares=self._weighting.gives_shares)

    def end(self, ending: Ending) -> Outcome:
        self._states |= {scope: state for scope, state in self._new.items() if scope in ending.committed}
        return Outcome()

    def keep(self, scopes: Collection[str]) -> None:
        self._states = {scope: state for scope, state in self._states.items() if scope in scopes}

    def state(self) -> StageState:
        """Return the weighting's state by scope."""
        return StageState(metadata=dict(self._states))

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        self._states = dict(state.metadata)


def _task_stats(group: Group) -> list[TaskStats]:
    """Return each task's examples and losses. Stale updates don't contribute to the loss of the round's model."""
    stats = []
    for task in group.tasks:
        mine = [one for one in group.updates if one.task == task]
        received = [
            (one.update.received.num_examples, one.update.received.metrics["loss"])
            for one in mine
            if "loss" in one.update.received.metrics and not one.staleness
        ]
        trained = [
            (one.examples_in(group.scope), one.update.trained.metrics["train_loss"])
            for one in mine
            if "train_loss" in one.update.trained.metrics
        ]
        stats.append(TaskStats(task, _plain(group.examples[task]), _mean_of(received), _mean_of(trained)))
    return stats


def _plain(number: Weight) -> int | float:
    return number if isinstance(number, int) else float(number)


def _mean_of(weighted: Sequence[tuple[Weight, float]]) -> float | None:
    """Return the weighted mean of values; None if the weights sum to 0."""
    total = sum(weight for weight, _ in weighted)
    return math.fsum(weight / total * value for weight, value in weighted) if total else None
