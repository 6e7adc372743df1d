"""Evaluations by clients, and a task's metrics computed from them.

Accuracy, F1, Matthews' and Pearson's correlation follow from sums over the evaluation rows. Sums of several clients add
up, so a task's metric is exactly the metric of all its clients' rows together. Other metrics are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Bounds = tuple[float, float]

MAX_LOSS = 3.4028234663852886e38
"""The largest loss, since losses are float32 numbers."""

LOSS_BOUNDS: Mapping[str, Bounds] = {"loss": (-MAX_LOSS, MAX_LOSS), "train_loss": (-MAX_LOSS, MAX_LOSS)}
"""Bounds of losses of any task type: those of a custom task type or trainer may be negative."""

BUILT_IN_BOUNDS: Mapping[str, Bounds] = {
    **LOSS_BOUNDS,
    "loss": (0.0, MAX_LOSS),
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
    "masked_accuracy": (0.0, 1.0),
}
"""The lowest and the highest value of the losses and metrics of the built-in task types."""

NO_MEANS = frozenset({"f1", "matthews", "pearson"})
"""Metrics whose value for all rows isn't the mean of the clients' values, but follows from their sums."""

MAX_METRIC = 1e100
"""Bound of the absolute value of metrics without bounds of their own."""

ROUNDING = 1e-6
"""Largest excess over a bound that counts as rounding, also for a client that computes in float32. The value is then
set to the bound."""

MAX_MOMENT = 1e200
"""Bound of the absolute value of the sums in `Moments`. Correlations beyond it are undefined."""

LEAST_VARIANCE = 1e-12
"""Smallest variance, relative to the mean square. Values with a smaller variance count as constant: the sums are
rounded to about 1e-16, and float32 outputs vary by as much from rounding alone."""


class Undefined(float):
    """A metric without a value: a NaN with a reason."""

    reason: str

    def __new__(cls, reason: str) -> Self:
        self = super().__new__(cls, math.nan)
        self.reason = reason
        return self


@dataclass(frozen=True)
class ClassCounts:
    """Counts of evaluation rows of a classification, by class number."""

    correct: tuple[int, ...]
    """Rows of the class that were predicted correctly."""
    predicted: tuple[int, ...]
    """Rows that were predicted to be of the class."""
    actual: tuple[int, ...]
    """Rows of the class."""

    @property
    def num_examples(self) -> int:
        return sum(self.actual)

    @classmethod
    def total(cls, counts: Sequence[Self]) -> Self:
        """Return the counts of several clients' rows together."""
        columns = ([one.correct for one in counts], [one.predicted for one in counts], [one.actual for one in counts])
        return cls(*(tuple(map(sum, zip(*column, strict=True))) for column in columns))

    def gives(self, name: str) -> bool:
        """Whether a metric follows from these sums. F1 needs two classes."""
        return name in ("accuracy", "matthews") or (name == "f1" and len(self.actual) == 2)

    def metric(self, name: str) -> float:
        """Return a metric that follows from these sums; `Undefined` if it has no value for the rows."""
        if name == "accuracy":
            return sum(self.correct) / self.num_examples if self.num_examples else Undefined("there are no rows")
        return self._f1() if name == "f1" else self._matthews()

    def _f1(self) -> float:
        """Return 2 tp / (2 tp + fp + fn); the second class is the positive one."""
        total = self.predicted[1] + self.actual[1]
        return 2 * self.correct[1] / total if total else Undefined("no row is positive, and none was predicted to be")

    def _matthews(self) -> float:
        """Return R_K (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006), in integers up to the last step."""
        size = self.num_examples
        of_actual = size**2 - sum(count**2 for count in self.actual)
        of_predicted = size**2 - sum(count**2 for count in self.predicted)
        if not of_actual or not of_predicted:
            return Undefined(f"all rows {'are' if not of_actual else 'were predicted to be'} of one class")
        products = sum(predicted * actual for predicted, actual in zip(self.predicted, self.actual, strict=True))
        value = (size * sum(self.correct) - products) / (math.sqrt(of_actual) * math.sqrt(of_predicted))
        return min(1.0, max(-1.0, value))


@dataclass(frozen=True)
class Moments:
    """Sums over the evaluation rows of a regression: x is the predicted value, y the target."""

    num_examples: int
    sum_x: float
    sum_y: float
    sum_xx: float
    sum_yy: float
    sum_xy: float

    @classmethod
    def total(cls, moments: Sequence[Self]) -> Self:
        """Return the sums over several clients' rows together, each rounded once."""
        num_examples, *sums = zip(*map(astuple, moments), strict=True)
        return cls(sum(num_examples), *map(math.fsum, sums))

    def gives(self, name: str) -> bool:
        """Whether a metric follows from these sums."""
        return name == "pearson"

    def metric(self, name: str) -> float:
        """Return a metric that follows from these sums; `Undefined` if it has no value for the rows."""
        assert self.gives(name)
        return self._pearson()

    def centered(self) -> tuple[Fraction, Fraction, Fraction]:
        """Return the variance of x, the variance of y and their covariance, times the squared number of rows. The
        results are exact, since the difference of two large rounded sums would lose all its digits."""
        size, x, y, xx, yy, xy = map(Fraction, astuple(self))
        return size * xx - x * x, size * yy - y * y, size * xy - x * y

    def _pearson(self) -> float:
        if self.num_examples < 2:
            return Undefined("a correlation takes at least 2 rows")
        of_x, of_y, of_both = self.centered()
        for what, variance, square in (("predictions", of_x, self.sum_xx), ("targets", of_y, self.sum_yy)):
            if variance <= Fraction(LEAST_VARIANCE) * self.num_examples * Fraction(square):
                return Undefined(f"all {what} are the same")
        squared = min(Fraction(1), of_both * of_both / (of_x * of_y))  # as floats, tiny variances would be 0
        return math.copysign(math.sqrt(squared), of_both)


Sums = ClassCounts | Moments


@dataclass(frozen=True)
class EvaluationDetails:
    """The part of an evaluation that its metrics don't contain, as an update carries it."""

    undefined: tuple[str, ...] = ()
    """Names of metrics that have no value."""
    sums: Sums | None = None
    """Sums over the rows, if metrics follow from sums."""


@dataclass(frozen=True, eq=False)
class Evaluation(Mapping[str, float]):
    """One client's evaluation of one model: a mapping of the metrics that have a value."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Finite values by name."""
    num_examples: int = 0
    """Number of evaluation rows."""
    undefined: Mapping[str, str] = field(default_factory=dict)
    """By metric without a value, the reason."""
    sums: Sums | None = None
    """Sums over the rows, if metrics follow from sums."""
    losses: npt.NDArray[np.float64] | None = None
    """The calibrated loss of each row that has a loss, in the order of the evaluation, `(rows,)`. Their mean isn't the
    metric `loss` in general. They stay with the client. None if they are unknown."""

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    @classmethod
    def of(cls, values: Mapping[str, float], num_examples: int, sums: Sums | None = None) -> Evaluation:
        """Return an evaluation with these values; values that aren't finite are undefined."""
        undefined = {name: _reason(value) for name, value in values.items() if not math.isfinite(value)}
        metrics = {name: float(value) for name, value in values.items() if name not in undefined}
        return cls(metrics, num_examples, undefined, sums)

    @classmethod
    def with_details(cls, metrics: Mapping[str, float], num_examples: int, details: EvaluationDetails) -> Evaluation:
        """Return an evaluation from the fields of an update, which have no reasons."""
        return cls(metrics, num_examples, dict.fromkeys(details.undefined, ""), details.sums)

    @property
    def says_anything(self) -> bool:
        """Whether anything was measured, including metrics without a value."""
        return bool(self.metrics or self.undefined or self.sums)

    def same_as(self, other: Evaluation) -> bool:
        """Whether another evaluation is equal in all fields, except for the reasons of undefined metrics."""
        return (self.metrics, self.num_examples, set(self.undefined), self.sums) == (
            other.metrics,
            other.num_examples,
            set(other.undefined),
            other.sums,
        )

    def with_metric(self, name: str, value: float) -> Evaluation:
        """Return this evaluation with one more metric, which is undefined if it isn't finite."""
        if math.isfinite(value):
            return replace(self, metrics={**self.metrics, name: float(value)})
        return replace(self, undefined={**self.undefined, name: _reason(value)})

    def has_sums_for(self, name: str) -> bool:
        """Whether a metric follows from this evaluation's sums."""
        return self.sums is not None and self.sums.gives(name)


def _reason(value: float) -> str:
    return value.reason if isinstance(value, Undefined) else f"it is {value}"


@dataclass(frozen=True)
class TaskMetric:
    """One metric of one task, with the rows and clients that it was computed from."""

    value: float | None
    """None if the metric is undefined for the task."""
    is_pooled: bool
    """Whether it is the metric of all rows together; otherwise it is the clients' mean, weighted by their rows."""
    num_clients: int
    """Number of clients that it was computed from."""
    num_examples: int
    """Number of these clients' evaluation rows."""
    num_undefined: int
    """Number of clients for which it is undefined. A mean excludes them; a pooled metric includes their rows."""


def task_metrics(evaluations: Iterable[Evaluation]) -> dict[str, TaskMetric]:
    """Return a task's metrics by name, from its clients' evaluations of one model or of their own models.

    A metric is pooled if its value follows from the sums of every client that has a value; otherwise it is a mean.
    """
    evaluations = list(evaluations)
    sums = [one.sums for one in evaluations if one.sums is not None]
    total = type(sums[0]).total(sums) if sums else None  # type: ignore[arg-type]  # one task's sums have one type
    names = dict.fromkeys(name for one in evaluations for name in (*one.metrics, *one.undefined))
    return {name: _task_metric(name, evaluations, total) for name in names}


def _task_metric(name: str, evaluations: Sequence[Evaluation], total: Sums | None) -> TaskMetric:
    counted = [one for one in evaluations if name in one]
    is_pooled = total is not None and total.gives(name) and all(one.has_sums_for(name) for one in counted)
    if is_pooled:
        counted = [one for one in evaluations if one.sums is not None]
    num_examples = sum(one.num_examples for one in counted)
    value: float | None = None
    if total is not None and is_pooled:
        value = total.metric(name)
    elif counted:
        value = sum(one.num_examples / num_examples * one[name] for one in counted)
    return TaskMetric(
        None if value is None or math.isnan(value) else value,
        is_pooled,
        len(counted),
        num_examples,
        sum(name in one.undefined for one in evaluations),
    )
