"""GLUE's metrics over a whole evaluation set.

Most follow from sums (`fedmtl_core.tasks.evaluation`). SciPy ranks the values for Spearman's correlation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import stats

from fedmtl_core.tasks.evaluation import MAX_MOMENT, ClassCounts, Moments, Sums, Undefined

Array = npt.NDArray[np.float64]


def class_counts(targets: Array, predictions: Array, num_classes: int) -> ClassCounts:
    """Count rows by class.

    Args:
        targets: class numbers, `(examples,)`.
        predictions: class numbers, `(examples,)`.
        num_classes: all class numbers are below it.
    """
    actual, predicted = targets.astype(np.int64), predictions.astype(np.int64)

    def counted(classes: npt.NDArray[np.int64]) -> tuple[int, ...]:
        return tuple(np.bincount(classes, minlength=num_classes).tolist())

    return ClassCounts(counted(actual[actual == predicted]), counted(predicted), counted(actual))


def moments(targets: Array, predictions: Array) -> Moments:
    """Return sums over rows, each rounded once.

    Args:
        targets: values, `(examples,)`; finite.
        predictions: values, `(examples,)`; finite.
    """
    x, y = predictions.astype(np.float64), targets.astype(np.float64)
    with np.errstate(over="ignore"):  # infinite squares are undefined metrics
        columns = (x, y, x * x, y * y, x * y)
    return Moments(len(x), *(_sum(column) for column in columns))


def _sum(values: Array) -> float:
    """Return the sum of values, rounded once; infinite if a value is infinite, or the sum is too large."""
    try:
        return math.fsum(values.tolist()) if np.isfinite(values).all() else math.inf
    except OverflowError:
        return math.inf


def is_bounded(sums: Moments) -> bool:
    """Whether sums are small enough to compute with."""
    return all(abs(value) <= MAX_MOMENT for value in (sums.sum_x, sums.sum_y, sums.sum_xx, sums.sum_yy, sums.sum_xy))


def scores(names: Iterable[str], targets: Array, predictions: Array, sums: Sums | None) -> dict[str, float]:
    """Return metrics by name, `Undefined` for those without a value.

    Args:
        names: names from `fedmtl_core.tasks.spec.METRICS`.
        targets: class numbers or values, `(examples,)`; finite.
        predictions: class numbers or values, `(examples,)`; finite.
        sums: the sums over these rows; None if values are too large for sums.
    """
    return {name: _score(name, targets, predictions, sums) for name in names}


def _score(name: str, targets: Array, predictions: Array, sums: Sums | None) -> float:
    if name == "spearman":
        return spearman(targets, predictions)
    return sums.metric(name) if sums is not None else Undefined("the values are too large")


def spearman(targets: Array, predictions: Array) -> float:
    """Return the correlation of ranks; `Undefined` with fewer than two rows, or if one side is constant."""
    if len(targets) < 2:
        return Undefined("a correlation takes at least 2 rows")
    for what, values in (("predictions", predictions), ("targets", targets)):
        if (values == values[0]).all():
            return Undefined(f"all {what} are the same")
    return float(stats.spearmanr(targets, predictions)[0])


def not_finite(outputs: Array) -> str:
    """Say how many rows of outputs have a number that isn't finite; empty if none has."""
    is_finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    count = len(outputs) - int(is_finite.sum())
    return f"{count} of {len(outputs)} outputs aren't finite" if count else ""
