"""Weights that no loss and no delta changes.

`temperature` samples tasks as multilingual models do languages: in proportion to n^(1/T) (Arivazhagan et al. 2019,
arXiv:1907.05019, section 3.2).
"""

from __future__ import annotations

import math

from fedmtl_server.aggregation.task_weighting.base import TaskRound, TaskWeighting, Weighed, shares, softmax


class Examples(TaskWeighting):
    """What its clients have trained on: FedAvg, by way of a mean for each task, where these are wanted too."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        return Weighed(shares([one.num_examples for one in round_.tasks]))


class Uniform(TaskWeighting):
    """Every task the same: p = 1/T of the T tasks that take part in the round."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        return Weighed(shares([1.0] * len(round_.tasks)))


class Fixed(TaskWeighting):
    """As the configuration says, in proportion among the tasks that take part in the round."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        return Weighed(shares([self.settings.weights[one.task] for one in round_.tasks]))


class Temperature(TaskWeighting):
    """p ∝ n^(1/T): at T = 1 a task counts as its examples do, and the higher T, the more alike all are."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        if self.settings.temperature == 1:
            return Examples(self.settings).weigh(round_)
        return Weighed(softmax([math.log(one.num_examples) / self.settings.temperature for one in round_.tasks]))
