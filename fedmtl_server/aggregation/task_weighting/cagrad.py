"""CAGrad, Liu et al. 2021, arXiv:2110.14048: the mean of the tasks, moved towards the task that it serves worst.

Task deltas take the place of the paper's gradients. With g₀ the mean of the deltas and g_w = Σ w_i Δ_i, w is the point
on the simplex that minimizes g_w · g₀ + c ‖g₀‖ ‖g_w‖. The direction is g₀ + c ‖g₀‖ g_w / ‖g_w‖. It is divided by 1 + c,
an option of the authors' code, so that tasks that agree move by their mean and not further.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedmtl_server.aggregation.task_weighting.base import TaskRound, TaskWeighting, Weighed

_NONE = 1e-12
"""Squared norms below this, relative to those of the deltas, are rounding errors."""


class CAGrad(TaskWeighting):
    """(g₀ + c ‖g₀‖ g_w / ‖g_w‖) / (1 + c)."""

    needs_products = True

    def weigh(self, round_: TaskRound) -> Weighed:
        assert round_.products is not None
        num_tasks, c = len(round_.tasks), self.settings.conflict_aversion
        mean = np.full(num_tasks, 1 / num_tasks)
        scale = float(np.trace(round_.products)) / num_tasks
        if scale == 0 or c == 0:
            return Weighed(mean.tolist())
        products = round_.products / scale
        length = c * math.sqrt(max(float(mean @ products @ mean), 0.0))
        w = worst_mixture(products, length)
        square = float(w @ products @ w)
        if square < _NONE:  # the tasks cancel out, so g_w has no direction
            return Weighed(mean.tolist())
        return Weighed(((mean + length / math.sqrt(square) * w) / (1 + c)).tolist())


def worst_mixture(products: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """Return the w that minimizes g_w · g₀ + length ‖g_w‖ with w >= 0 and sum 1: a small convex problem.

    Args:
        products: inner products of the deltas, `(tasks, tasks)`, of the order of 1.
        length: c ‖g₀‖.

    Returns:
        float64 `(tasks,)`.
    """
    from scipy.optimize import minimize

    num_tasks = len(products)
    with_mean = products.mean(axis=1)

    def objective(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        along = products @ w
        norm = math.sqrt(max(float(w @ along), 0.0) + _NONE)
        return float(w @ with_mean) + length * norm, with_mean + length / norm * along

    found = minimize(
        objective,
        np.full(num_tasks, 1 / num_tasks),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * num_tasks,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    w: NDArray[np.float64] = np.maximum(np.asarray(found.x, dtype=np.float64), 0.0)
    w /= w.sum()
    return w
