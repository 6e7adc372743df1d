"""The evidence for a candidate, and the margins that it must reach.

This module works on numbers only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from fedmtl_core.config import Config
from fedmtl_core.tasks.paired import PairedLoss
from fedmtl_core.wire.variant_messages import MAX_VARIANTS


@dataclass(frozen=True)
class SelectionRules:
    """The limits of the trials and the margins of a decision."""

    trials: int = 2
    """Largest number of candidates for a task in a round."""
    error_rate: float = 0.05
    """Probability that a run accepts any candidate that is no better."""
    min_gain: float = 0.02
    """Smallest accepted reduction of the loss, as a share of the model's loss."""
    num_trials: int = 1
    """Largest number of trials of all tasks in the run; `error_rate` is divided among them."""

    @property
    def z_join(self) -> float:
        """The number of standard errors by which a candidate must be better (Bonferroni's correction)."""
        rate = max(self.error_rate / max(self.num_trials, 1), sys.float_info.min)
        return -NormalDist().inv_cdf(rate)  # the lower tail, because 1 - rate is 1 for small rates

    @property
    def z_leave(self) -> float:
        """The number of standard errors by which fewer sources must be better, and an added task better than the
        control. The correction does not apply: a task that returns to its own updates risks nothing, and the control
        is a second condition."""
        return -NormalDist().inv_cdf(max(self.error_rate, sys.float_info.min))


def selection_rules(config: Config) -> SelectionRules:
    """Return the limits and margins that a configuration sets for its run."""
    section = config.sharing.adaptive
    num_targets = len(config.tasks) - len(config.auxiliary_tasks())
    trials = min(section.trials, MAX_VARIANTS - 1)  # the control is a variant too
    num_trials = trials * num_targets * config.training.num_rounds
    return SelectionRules(trials, section.error_rate, section.min_gain, num_trials)


@dataclass(frozen=True)
class Comparison:
    """The paired loss of a candidate's model and the task's model, over all rows of the task's clients."""

    loss: float
    """Mean loss of the candidate's model."""
    difference: float
    """Mean of the candidate's loss minus the model's; below 0 if the candidate is better, infinite if it diverged."""
    standard_error: float
    num_examples: int
    lowers_metric: bool = False
    """Whether the candidate's model has a lower main metric than the task's model."""
    beyond_control: Comparison | None = None
    """The candidate's loss minus the control's, on the rows of the clients that compared both; None if no client did.
    Its standard error is the sum of both standard errors, the upper bound for the same rows."""

    @property
    def z(self) -> float:
        """The difference in standard errors, corrected for few examples: the normal quantile for Student's quantile.

        It is infinite with the sign of the difference if the standard error is 0. The correction is an approximation
        (Wallace 1959, Annals of Mathematical Statistics 30). It errs towards 0, for 10 examples and 4 standard errors
        by less than 0.01.
        """
        if not self.difference or not math.isfinite(self.difference):
            return self.difference
        t = self.difference / self.standard_error if self.standard_error > 0 else math.inf
        if not math.isfinite(t):
            return math.copysign(math.inf, self.difference)
        free = max(self.num_examples - 1, 1)
        # log(1 + t²/free), also for t whose square is too large for a float
        grown = 2 * math.log(math.hypot(1, t / math.sqrt(free)))
        return math.copysign((8 * free + 1) / (8 * free + 3) * math.sqrt(free * grown), t)

    @property
    def gain(self) -> float:
        """The reduction of the loss as a share of the model's loss; below 0 if the candidate is worse."""
        if not math.isfinite(self.difference):
            return -self.difference
        model = self.loss - self.difference
        return -self.difference / model if model > 0 else 0.0


def beyond_control(candidate: Mapping[str, PairedLoss], control: Mapping[str, PairedLoss]) -> Comparison | None:
    """Return the comparison of a candidate with the control, over the clients that compared both with the model.

    Args:
        candidate: by client with a finite loss, its paired loss of the candidate's model.
        control: the same for the control.

    Returns:
        None if there is no such client, or a standard error is unknown.
    """
    both = [client for client in candidate if client in control]
    if not both:
        return None
    mine, other = (PairedLoss.pooled([losses[client] for client in both]) for losses in (candidate, control))
    if mine.standard_error is None or other.standard_error is None:
        return None
    error = mine.standard_error + other.standard_error
    return Comparison(mine.loss, mine.difference - other.difference, error, mine.num_examples)


DIVERGED = Comparison(math.inf, math.inf, 0.0, 0)
"""The comparison of a candidate whose loss isn't finite: it is infinitely worse than the model."""
