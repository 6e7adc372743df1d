"""Tasks don't pull against one another: PCGrad, "gradient surgery", Yu et al. 2020, arXiv:2001.06782.

What its gradients are there, the deltas are here. From each task's delta is taken, for the other tasks in random order,
what conflicts with theirs: where the inner product is negative, its projection onto theirs. What is left is averaged.
"""

from __future__ import annotations

import random

import numpy as np

from fedmtl_server.aggregation.task_weighting.base import TaskRound, TaskWeighting, Weighed


class PCGrad(TaskWeighting):
    """g_i -= (g_i · Δ_j / ‖Δ_j‖²) Δ_j where g_i · Δ_j < 0; the mean of all g_i."""

    needs_products = True

    def weigh(self, round_: TaskRound) -> Weighed:
        products = round_.products
        assert products is not None
        num_tasks, draw = len(round_.tasks), random.Random(round_.seed)
        parts = np.eye(num_tasks)  # row i: g_i in terms of the deltas, so that no delta has to be looked at
        for i in range(num_tasks):
            others = [j for j in range(num_tasks) if j != i]
            draw.shuffle(others)
            for j in others:
                product = float(parts[i] @ products[:, j])
                if product < 0 < products[j, j]:
                    parts[i, j] -= product / products[j, j]
        return Weighed([float(one) for one in parts.mean(axis=0)])
