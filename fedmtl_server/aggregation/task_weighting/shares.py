"""Weightings that use neither losses nor deltas.

`temperature` weights tasks like languages in multilingual models: in proportion to n^(1/T) (Arivazhagan et al. 2019,
arXiv:1907.05019, section 3.2).
"""

from __future__ import annotations

import math

from fedmtl_server.aggregation.task_weighting.base import TaskRound, TaskWeighting, Weighed, shares, softmax


class Examples(TaskWeighting):
    """Each task's share of the examples: FedAvg, but with a mean for each task."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        return Weighed(shares([one.num_examples for one in round_.tasks]))


class Uniform(TaskWeighting):
    """The same share for every task: p = 1/T for the T tasks in the round."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        return Weighed(shares([1.0] * len(round_.tasks)))


class Fixed(TaskWeighting):
    """The configured `task_weights`, scaled to a sum of 1 over the tasks in the round."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        return Weighed(shares([self.settings.weights[one.task] for one in round_.tasks]))


class Temperature(TaskWeighting):
    """p ∝ n^(1/T): T = 1 weights by examples, and a higher T makes the shares more equal."""

    gives_shares = True

    def weigh(self, round_: TaskRound) -> Weighed:
        if self.settings.temperature == 1:
            return Examples(self.settings).weigh(round_)
        return Weighed(softmax([math.log(one.num_examples) / self.settings.temperature for one in round_.tasks]))
