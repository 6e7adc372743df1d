"""What each task counts for in what several share: as a weighting says, which sees no tensors (`task_weighting`)."""

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
from fedmtl_server.aggregation.task_weighting.base import RoundWeighting, TaskFacts, TaskWeighting
from fedmtl_server.aggregation.values import RoundContext, ScreenedUpdate, StageState


class TaskWeights(Stage):
    """Has what several tasks share accumulated for each of them, and moves it by the sum of their weighted deltas.

    Args:
        weighting: what each task counts for.
        seed: the run's, for what the weighting leaves to chance.
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
        weighed = weighting.weigh(group.scope, _facts(group), products)
        self._new[group.scope] = weighed.state
        shares = dict(zip(group.tasks, weighed.coefficients, strict=True))
        return replace(combination, shares=shares, are_shares=self._weighting.gives_shares)

    def end(self, ending: Ending) -> Outcome:
        self._states |= {scope: state for scope, state in self._new.items() if scope in ending.committed}
        return Outcome()

    def keep(self, scopes: Collection[str]) -> None:
        self._states = {scope: state for scope, state in self._states.items() if scope in scopes}

    def state(self) -> StageState:
        """By scope, what the weighting remembers of it."""
        return StageState(facts=dict(self._states))

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        self._states = dict(state.facts)


def _facts(group: Group) -> list[TaskFacts]:
    """What a round's updates say of their tasks. Who started from an older model says nothing of the round's own."""
    facts = []
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
        facts.append(TaskFacts(task, _plain(group.examples[task]), _mean_of(received), _mean_of(trained)))
    return facts


def _plain(number: Weight) -> int | float:
    return number if isinstance(number, int) else float(number)


def _mean_of(weighted: Sequence[tuple[Weight, float]]) -> float | None:
    """The mean of values with their weights; None if they have none."""
    total = sum(weight for weight, _ in weighted)
    return math.fsum(weight / total * value for weight, value in weighted) if total else None
