"""Converts a client's evaluations to contract messages and back, and checks that every number is possible."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from fractions import Fraction

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import InvalidRequestError, LimitExceededError, NonFiniteError
from fedmtl_core.identifiers import quoted, shown
from fedmtl_core.tasks.evaluation import (
    MAX_METRIC,
    MAX_MOMENT,
    ROUNDING,
    ClassCounts,
    Evaluation,
    EvaluationDetails,
    Moments,
)
from fedmtl_core.tasks.spec import TaskSpec

MAX_METRICS = 64
MAX_METRIC_NAME = 64


def details_to_proto(evaluation: Evaluation) -> pb.EvaluationDetails:
    """Return the details of an evaluation beyond its metrics: undefined metrics, and sums."""
    details = pb.EvaluationDetails(undefined=evaluation.undefined)
    if isinstance(evaluation.sums, ClassCounts):
        details.class_counts.CopyFrom(pb.ClassCounts(**asdict(evaluation.sums)))
    elif evaluation.sums is not None:
        details.moments.CopyFrom(pb.Moments(**asdict(evaluation.sums)))
    return details


def metrics_from_proto(field: str, metrics: Mapping[str, float], spec: TaskSpec) -> dict[str, float]:
    """Return a message's metrics by name, each within its bounds.

    Args:
        field: the path of the metrics in the header.
        metrics: the metrics in the message.
        spec: the task of the evaluation.

    Raises:
        NonFiniteError: a value isn't finite.
        InvalidRequestError: a value is out of bounds.
        LimitExceededError: there are too many metrics, or their names are too long.
    """
    _require_few(field, metrics)
    return {name: _possible(field, name, value, spec) for name, value in sorted(metrics.items())}


def _possible(field: str, name: str, value: float, spec: TaskSpec) -> float:
    """Return a metric's value, or its bound if rounding took the value beyond the bound."""
    if not math.isfinite(value):
        raise NonFiniteError(f"{field}: {shown(name)}: expected a finite number, got {value}", field=field)
    low, high = spec.metric_bounds.get(name, (-MAX_METRIC, MAX_METRIC))
    if not low - ROUNDING <= value <= high + ROUNDING:
        raise _invalid(field, f"{shown(name)}: expected a number from {low:g} to {high:g}, got {value}")
    return min(high, max(low, value))


def details_from_proto(
    field: str, details: pb.EvaluationDetails, metrics: Collection[str], num_eval_examples: int, spec: TaskSpec
) -> EvaluationDetails:
    """Return the details of an evaluation from a message.

    Args:
        field: the path of the details in the header.
        details: the message.
        metrics: the names of the evaluation's metrics.
        num_eval_examples: the number of evaluation examples.
        spec: the task of the evaluation.

    Raises:
        InvalidRequestError: a number is impossible, or contradicts the others.
        LimitExceededError: there are too many metrics, or their names are too long.
    """
    _require_few(f"{field}.undefined", details.undefined)
    undefined = tuple(dict.fromkeys(details.undefined))
    for name in undefined:
        if name in metrics:
            text = f"expected metrics without a value, got {quoted(name)}, which has a value"
            raise _invalid(f"{field}.undefined", text)
    sums: ClassCounts | Moments | None = None
    if details.HasField("class_counts"):
        sums = _class_counts(f"{field}.class_counts", details.class_counts, num_eval_examples, spec)
    if details.HasField("moments"):
        sums = _moments(f"{field}.moments", details.moments, num_eval_examples, spec)
    return EvaluationDetails(undefined, sums)


def _class_counts(field: str, message: pb.ClassCounts, num_eval_examples: int, spec: TaskSpec) -> ClassCounts:
    if spec.kind != "classification":
        raise _invalid(field, f"expected none, because the task {spec.name} is a {spec.kind}")
    columns = {"correct": message.correct, "predicted": message.predicted, "actual": message.actual}
    for name, column in columns.items():
        path = f"{field}.{name}"
        if len(column) != len(spec.labels):
            raise _invalid(path, f"expected {len(spec.labels)} numbers, one for each label, got {len(column)}")
        if min(column) < 0:
            raise _invalid(path, f"expected no negative number, got {min(column)}")
        if name != "correct" and sum(column) != num_eval_examples:
            raise _invalid(path, f"expected the sum {num_eval_examples}, as in num_eval_examples, got {sum(column)}")
    for number, (correct, *others) in enumerate(zip(*columns.values(), strict=True)):
        if correct > min(others):
            raise _invalid(
                f"{field}.correct",
                f"class {number}: expected at most {min(others)}, the smaller of predicted and actual, got {correct}",
            )
    return ClassCounts(*(tuple(column) for column in columns.values()))


def _moments(field: str, message: pb.Moments, num_eval_examples: int, spec: TaskSpec) -> Moments:
    if spec.kind != "regression":
        raise _invalid(field, f"expected none, because the task {spec.name} is a {spec.kind}")
    if not 1 <= message.num_examples == num_eval_examples:
        raise _invalid(
            f"{field}.num_examples",
            f"expected {num_eval_examples}, as in num_eval_examples, got {message.num_examples}",
        )
    sums = {name: getattr(message, name) for name in ("sum_x", "sum_y", "sum_xx", "sum_yy", "sum_xy")}
    for name, value in sums.items():
        low = 0.0 if name in ("sum_xx", "sum_yy") else -MAX_MOMENT
        if not low <= value <= MAX_MOMENT:  # NaN fails this check too
            raise _invalid(f"{field}.{name}", f"expected a number from {low:g} to {MAX_MOMENT:g}, got {value}")
    moments = Moments(message.num_examples, **sums)
    for name, is_possible in zip(("sum_xx", "sum_yy", "sum_xy"), _are_possible(moments), strict=True):
        if not is_possible:
            raise _invalid(f"{field}.{name}", f"expected sums that rows can have, got {moments}")
    return moments


def _are_possible(moments: Moments) -> tuple[bool, bool, bool]:
    """Whether the variance of x, the variance of y, and their covariance are possible, up to rounding."""
    of_x, of_y, of_both = moments.centered()
    size = math.sqrt(moments.num_examples)
    # Square roots, because the products can be too large for a float.
    x, y = (size * math.sqrt(square) for square in (moments.sum_xx, moments.sum_yy))
    x_rounding, y_rounding = (math.sqrt(ROUNDING) * root for root in (x, y))
    x_deviation, y_deviation = (math.sqrt(max(variance, Fraction())) for variance in (of_x, of_y))
    return (
        of_x >= -(x_rounding**2),
        of_y >= -(y_rounding**2),
        abs(of_both) <= (x_deviation + x_rounding) * (y_deviation + y_rounding),
    )


def _require_few(field: str, names: Collection[str]) -> None:
    if len(names) > MAX_METRICS:
        raise LimitExceededError(
            f"{field}: at most {MAX_METRICS} metrics are allowed, got {len(names)}",
            field=field,
            allowed=MAX_METRICS,
            got=len(names),
        )
    for name in names:
        if not 1 <= len(name) <= MAX_METRIC_NAME:
            raise LimitExceededError(
                f"{field}: a name has 1 to {MAX_METRIC_NAME} characters, got {len(name)}", field=field
            )


def _invalid(field: str, text: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {text}", field=field)
