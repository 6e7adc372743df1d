"""Normalized averaging (FedNova; Wang et al. 2020, arXiv:2007.07481): deltas are averaged per optimizer step.

Clients that take more local steps move further. The plain average of the deltas therefore ends nearer to these clients'
minima than to the minimum of the weighted mean loss. FedNova averages deltas per step and multiplies the average by the
round's effective number of steps:

    x += τ_eff Σ p_i Δ_i / τ_i,    τ_eff = Σ p_i τ_i

with p_i client i's share of the examples and τ_i its steps. Before the round's last update, p_i / τ_i is known only up
to a scale. That is enough: deltas are averaged with the weights n_i / τ_i as they arrive, and when the round closes the
mean is multiplied by τ_eff Σ p_i / τ_i. This factor is at least 1, and exactly 1 if all clients take the same number of
steps. Weights and factor are fractions, so FedNova then equals the plain average to the last bit.
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
    """One client's examples and steps in a component."""

    task: str
    num_examples: int | Fraction
    num_steps: int
    factor: int | Fraction = 1
    """The factor of the examples of the client's task."""

    @property
    def weight(self) -> int | Fraction:
        """The number of examples n, times the factor of the client's task."""
        return self.num_examples * self.factor


def step_weight(client_id: str, weight: int | Fraction, num_steps: int) -> Fraction:
    """Return a delta's weight in the running mean: n / τ.

    Raises:
        AggregationError: the client reports no steps.
    """
    if num_steps < 1:
        raise AggregationError(f"{client_id}: expected num_steps of at least 1, got {num_steps}")
    return Fraction(weight) / num_steps


@dataclass(frozen=True)
class RoundSteps:
    """The steps of all clients of a component in a round.

    Args:
        parts: the clients' examples and steps; at least one weight is above 0.
    """

    parts: tuple[Steps, ...]

    @cached_property
    def effective(self) -> Fraction:
        """τ_eff, computed from the examples of all clients; a task weighting uses the same τ_eff for all tasks."""
        return _mean((Fraction(part.num_steps), part.weight) for part in self.parts)

    def factor(self, task: str | None = None) -> Fraction:
        """Return the factor on the mean with weights n / τ: τ_eff Σ p / τ, with p the shares within that mean.

        Args:
            task: the task of the mean, with examples above 0; None for the mean over all tasks.
        """
        weighted = [(part, part.weight) for part in self.parts]
        if task is not None:
            weighted = [(part, part.num_examples) for part in self.parts if part.task == task]
        return self.effective * _mean((Fraction(1, part.num_steps), weight) for part, weight in weighted)

    def scale(self, num_steps: int) -> float:
        """Return the factor on a delta of `num_steps` steps relative to a delta of τ_eff steps."""
        return float(self.effective / num_steps)


class FedNova(Stage):
    """Averages deltas per step. Every update must report its number of optimizer steps as `num_steps`."""

    rule = NORMALIZATION

    def __init__(self) -> None:
        self._context = RoundContext()

    def admit(self, update: Update) -> None:
        if update.kind != "metrics" and self._steps(update) < 1:
            raise InvalidRequestError(
                "num_steps: this server averages deltas per step (aggregation.normalization), expected at least 1, "
                "got 0",
                field="num_steps",
            )

    def begin(self, context: RoundContext) -> None:
        self._context = context

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        self._context.require_base(update, update.components, "averaging per step")
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
        """Return the number of optimizer steps of an update; 0 if it reports none."""
        return int(update.extra_of(self.name, "num_steps"))


def _mean(weighted: Iterable[tuple[Fraction, int | Fraction]]) -> Fraction:
    pairs = list(weighted)
    return sum((value * weight for value, weight in pairs), Fraction()) / sum(weight for _, weight in pairs)
