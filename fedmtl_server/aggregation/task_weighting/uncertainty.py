"""Uncertainty weighting, Kendall et al. 2018, arXiv:1705.07115: each task's weight is its inverse variance.

The total loss is the sum over tasks of ½ exp(-s) L + ½ s, where s = log σ² is a task's log-variance. In each round, the
server takes one step of gradient descent on s with the clients' training losses; s starts at 0. For classification,
the paper uses exp(-s) L + ½ s. That is the same with s shifted by log 2, and the steps find this constant themselves.
"""

from __future__ import annotations

import math

from fedmtl_server.aggregation.task_weighting.base import TaskRound, TaskWeighting, Weighed, softmax

MOST_RATIO = 10.0
"""Upper limit of L / σ². Otherwise a single report of a huge loss could permanently exclude the task."""


class Uncertainty(TaskWeighting):
    """p ∝ 1/σ², and then s += η ½ (L/σ² - 1)."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        known: dict[str, float] = dict(round_.state.get("log_variances", {}))
        now = [known.get(one.task, 0.0) for one in round_.tasks]
        for one, s in zip(round_.tasks, now, strict=True):
            known[one.task] = s if one.train_loss is None else s + self._step(one.train_loss, s)
        return Weighed(softmax([-s for s in now]), {"log_variances": known})

    def _step(self, loss: float, s: float) -> float:
        ratio = math.exp(min(math.log(loss) - s, math.log(MOST_RATIO))) if loss > 0 else 0.0
        return self.settings.learning_rate * 0.5 * (ratio - 1)
