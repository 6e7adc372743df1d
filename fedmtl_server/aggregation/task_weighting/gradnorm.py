"""GradNorm, Chen et al. 2018, arXiv:1711.02257: tasks that train more slowly get higher weights.

Task deltas take the place of the paper's gradients. The target for the norm of a task's delta, times its weight w, is
Ḡ r^α. Ḡ is the mean of these norms over the tasks. r is the task's inverse training rate: its training loss relative to
its first training loss, divided by the tasks' mean of that ratio. Each round takes one step of gradient descent on
Σ |w ‖Δ‖ - Ḡ r^α|, with the target as a constant. The weights of the round's tasks are then scaled to a mean of 1, which
is also their initial value.
"""

from __future__ import annotations

import math

import numpy as np

from fedmtl_server.aggregation.task_weighting.base import LEAST_LOSS, TaskRound, TaskWeighting, Weighed, shares

LEAST_WEIGHT = 1e-3
"""Lower limit of a weight, relative to a mean of 1. It keeps weights positive after a step."""


class GradNorm(TaskWeighting):
    """p ∝ w, and then w -= η sign(w ‖Δ‖ - Ḡ r^α) ‖Δ‖, with ‖Δ‖ relative to the tasks' mean."""

    needs_products = True
    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        assert round_.products is not None
        names = [one.task for one in round_.tasks]
        weights: dict[str, float] = dict(round_.state.get("weights", {}))
        first: dict[str, float] = dict(round_.state.get("first_losses", {}))
        first |= {
            one.task: one.train_loss for one in round_.tasks if one.train_loss is not None and one.task not in first
        }
        now = _to_mean_1([weights.get(name, 1.0) for name in names])
        norms = [float(norm) for norm in np.sqrt(np.diag(round_.products))]
        stepped = self._stepped(now, norms, _inverse_rates(round_, first))
        state = {"weights": weights | dict(zip(names, stepped, strict=True)), "first_losses": first}
        return Weighed(shares(now), state)

    def _stepped(self, weights: list[float], norms: list[float], rates: list[float]) -> list[float]:
        mean = math.fsum(norms) / len(norms)
        if mean == 0:
            return weights
        relative = [norm / mean for norm in norms]
        weighted = [w * norm for w, norm in zip(weights, relative, strict=True)]
        target = math.fsum(weighted) / len(weighted)
        settings, stepped = self.settings, []
        for w, norm, rate in zip(weights, relative, rates, strict=True):
            excess = w * norm - target * rate**settings.asymmetry
            step = settings.learning_rate * math.copysign(norm, excess) if excess else 0.0
            stepped.append(max(w - step, LEAST_WEIGHT))
        return _to_mean_1(stepped)


def _inverse_rates(round_: TaskRound, first: dict[str, float]) -> list[float]:
    """Return each task's inverse training rate relative to the mean; 1 for a task without a reported loss."""
    ratios = [
        None if one.train_loss is None else max(one.train_loss, LEAST_LOSS) / max(first[one.task], LEAST_LOSS)
        for one in round_.tasks
    ]
    known = [ratio for ratio in ratios if ratio is not None]
    mean = math.fsum(known) / len(known) if known else 1.0
    return [1.0 if ratio is None else ratio / mean for ratio in ratios]


def _to_mean_1(weights: list[float]) -> list[float]:
    return [share * len(weights) for share in shares(weights)]
