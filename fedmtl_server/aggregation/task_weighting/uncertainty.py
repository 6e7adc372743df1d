"""Each task counts by how certain it is: Kendall et al. 2018, arXiv:1705.07115.

The total loss is the sum over tasks of ½ exp(-s) L + ½ s, where s = log σ² is a task's log-variance. The server takes
one step of gradient descent on s a round, at the clients' training losses; s begins at 0. For a classification the
paper has exp(-s) L + ½ s, which is the same with s shifted by log 2: such a constant the steps find by themselves.
"""

from __future__ import annotations

import math

from fedmtl_server.aggregation.task_weighting.base import TaskRound, TaskWeighting, Weighed, softmax

MOST_RATIO = 10.0
"""L / σ² counts as no more than that: with one report of a huge loss a client could end its task's part for good."""


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
