"""PCGrad ("gradient surgery"), Yu et al. 2020, arXiv:2001.06782: conflicting parts of task deltas are removed.

Task deltas take the place of the paper's gradients. For each task, the other tasks are visited in random order. If the
inner product of the task's delta and the other task's delta is negative, its projection onto the other delta is
subtracted. The results are averaged.
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
        parts = np.eye(num_tasks)  # row i: g_i as a combination of the deltas, so no tensor is needed
        for i in range(num_tasks):
            others = [j for j in range(num_tasks) if j != i]
            draw.shuffle(others)
            for j in others:
                product = float(parts[i] @ products[:, j])
                if product < 0 < products[j, j]:
                    parts[i, j] -= product / products[j, j]
        return Weighed([float(one) for one in parts.mean(axis=0)])
