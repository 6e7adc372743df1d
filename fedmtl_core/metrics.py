"""GLUE's metrics over a whole evaluation set, by scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics as sk

Array = npt.NDArray[np.float64]


def scores(names: Iterable[str], targets: Array, predictions: Array) -> dict[str, float]:
    """Metrics by name.

    Args:
        names: of `fedmtl_core.tasks.METRICS`.
        targets: class numbers or values, `(examples,)`.
        predictions: likewise.

    Returns:
        Value by metric name, each in -1 to 1. A correlation is 0 where it is undefined: with fewer than
        two examples, or when one side is constant or not finite.
    """
    return {name: float(_METRICS[name](targets, predictions)) for name in names}


def _correlation(function: Callable[[Array, Array], tuple[float, float]]) -> Callable[[Array, Array], float]:
    def correlation(targets: Array, predictions: Array) -> float:
        defined = len(targets) >= 2 and all(np.isfinite(x).all() and np.ptp(x) > 0 for x in (targets, predictions))
        value = function(targets, predictions)[0] if defined else 0.0
        return value if np.isfinite(value) else 0.0

    return correlation


_METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": sk.accuracy_score,
    "f1": lambda targets, predictions: sk.f1_score(targets, predictions, zero_division=0.0),
    "matthews": sk.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}
