"""Normalised averaging (FedNova; Wang et al. 2020, arXiv:2007.07481): a client's delta counts for each step it took.

Clients that take more local steps move further, and the plain average of their deltas ends nearer to their minima than
to the one of the weighted mean of all losses. FedNova averages deltas by step, and gives the average back the round's
effective number of steps:

    x += τ_eff Σ p_i Δ_i / τ_i,    τ_eff = Σ p_i τ_i

with p_i client i's share of the examples and τ_i its steps. Nothing of that is known before the round's last update is
there but p_i / τ_i up to a scale, which is enough: the deltas are averaged with the weights n_i / τ_i as they come, and
at the close that mean is multiplied with τ_eff Σ p_i / τ_i. The factor is at least 1, and 1 where all take the same
number of steps. Both are fractions, so that FedNova then is the plain average to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from fedmtl_core.config.stages import NORMALIZATION
from fedmtl_core.errors import AggregationError, InvalidRequestError
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.accumulators import Weight
from fedmtl_server.aggregation.stages.base import Combination, Group, Stage
from fedmtl_server.aggregation.values import RoundContext, ScreenedUpdate


@dataclass(frozen=True)
class Steps:
    """One client's part in a component."""

    task: str
    num_examples: int | Fraction
    num_steps: int
    factor: int | Fraction = 1
    """What an example of its task counts for."""

    @property
    def weight(self) -> int | Fraction:
        """n, as much as it counts for beside other tasks'."""
        return self.num_examples * self.factor


def step_weight(client_id: str, weight: int | Fraction, num_steps: int) -> Fraction:
    """What a delta weighs in the running mean: n / τ.

    Raises:
        AggregationError: there are no steps.
    """
    if num_steps < 1:
        raise AggregationError(f"{client_id}: expected num_steps of at least 1, got {num_steps}")
    return Fraction(weight) / num_steps


@dataclass(frozen=True)
class RoundSteps:
    """The steps of all who share a component in a round.

    Args:
        parts: theirs; their weights are not all 0.
    """

    parts: tuple[Steps, ...]

    @cached_property
    def effective(self) -> Fraction:
        """τ_eff, by the examples of all of them: also where tasks are weighted, it is one for all tasks."""
        return _mean((Fraction(part.num_steps), part.weight) for part in self.parts)

    def factor(self, task: str | None = None) -> Fraction:
        """What the mean of weights n / τ is multiplied with: τ_eff Σ p / τ, with p the shares within that mean.

        Args:
            task: whose mean it is; None for all tasks'. Its examples are not all 0.
        """
        weighted = [(part, part.weight) for part in self.parts]
        if task is not None:
            weighted = [(part, part.num_examples) for part in self.parts if part.task == task]
        return self.effective * _mean((Fraction(1, part.num_steps), weight) for part, weight in weighted)

    def scale(self, num_steps: int) -> float:
        """What a delta of so many steps counts for against one of τ_eff steps."""
        return float(self.effective / num_steps)


class FedNova(Stage):
    """Has deltas count by step. Every update says how many optimiser steps it took: its number `num_steps`."""

    rule = NORMALIZATION

    def __init__(self) -> None:
        self._context = RoundContext()

    def admit(self, update: Update) -> None:
        if update.kind != "metrics" and self._steps(update) < 1:
            raise InvalidRequestError(
                "num_steps: this server counts deltas by step (aggregation.normalization), expected at least 1, got 0",
                field="num_steps",
            )

    def begin(self, context: RoundContext) -> None:
        self._context = context

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        self._context.require_base(update, update.components, "counting by step")
        return update

    def weigh(self, scope: str, update: ScreenedUpdate, weight: Weight) -> Weight:
        return step_weight(update.client_id, weight, self._steps(update.update))

    def combine(self, group: Group, combination: Combination) -> Combination:
        num_steps = [self._steps(one.update) for one in group.updates]
        steps = RoundSteps(
            tuple(
                Steps(one.task, one.examples_in(group.scope), taken, group.factors.of(group.scope, one.task))
                for one, taken in zip(group.updates, num_steps, strict=True)
            )
        )
        return replace(
            combination,
            multipliers={key: float(steps.factor(key or None)) for key in group.keys},
            scales=[steps.scale(taken) for taken in num_steps],
        )

    def _steps(self, update: Update) -> int:
        """The optimiser steps that an update took; 0 if it doesn't say."""
        return int(update.extra_of(self.name, "num_steps"))


def _mean(weighted: Iterable[tuple[Fraction, int | Fraction]]) -> Fraction:
    pairs = list(weighted)
    return sum((value * weight for value, weight in pairs), Fraction()) / sum(weight for _, weight in pairs)
