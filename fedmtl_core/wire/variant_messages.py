"""Converts evaluations of variants to contract messages and back, and checks that every number is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import InvalidRequestError, LimitExceededError
from fedmtl_core.identifiers import quoted, require_identifier
from fedmtl_core.tasks.evaluation import MAX_METRIC, ROUNDING, Evaluation
from fedmtl_core.tasks.paired import PairedLoss, VariantEvaluation
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.evaluation_messages import details_from_proto, details_to_proto, metrics_from_proto

MAX_VARIANTS = 16
"""The maximum number of variants of a task's slice in one round."""

_WITH_A_LOSS_EACH = ("classification", "regression")
"""The task types whose examples all have a loss."""


def variant_to_proto(variant: VariantEvaluation) -> pb.VariantEvaluation:
    """Return the evaluation of a variant as a message."""
    paired, evaluation = variant.paired, variant.evaluation
    if paired is None:
        return pb.VariantEvaluation(name=variant.name, diverged=True)
    message = pb.VariantEvaluation(
        name=variant.name,
        num_examples=paired.num_examples,
        loss=paired.loss,
        loss_difference=paired.difference,
        squared_deviations=paired.squared_deviations,
        metrics=dict(evaluation),
    )
    if evaluation.says_anything:
        message.details.CopyFrom(details_to_proto(evaluation))
    return message


def variants_from_proto(
    messages: Sequence[pb.VariantEvaluation], num_eval_examples: int, spec: TaskSpec
) -> tuple[VariantEvaluation, ...]:
    """Return the evaluations of variants in an update's header.

    Args:
        messages: the field `variants` of the header.
        num_eval_examples: the number of evaluation examples.
        spec: the task of the update.

    Raises:
        NonFiniteError: a metric isn't finite.
        InvalidRequestError: a number is impossible, or a name is malformed or occurs twice.
        LimitExceededError: there are too many variants or metrics.
    """
    if len(messages) > MAX_VARIANTS:
        raise LimitExceededError(
            f"variants: at most {MAX_VARIANTS} variants are allowed, got {len(messages)}",
            field="variants",
            allowed=MAX_VARIANTS,
            got=len(messages),
        )
    variants: dict[str, VariantEvaluation] = {}
    for number, message in enumerate(messages):
        field = f"variants[{number}]"
        name = require_identifier(f"{field}.name", message.name)
        if name in variants:
            raise _invalid(f"{field}.name", f"expected each name once, got {quoted(name)} twice")
        variants[name] = _variant(field, message, num_eval_examples, spec)
    return tuple(variants.values())


def _variant(field: str, message: pb.VariantEvaluation, num_eval_examples: int, spec: TaskSpec) -> VariantEvaluation:
    if message.diverged:
        if message != pb.VariantEvaluation(name=message.name, diverged=True):
            raise _invalid(f"{field}.diverged", "expected no numbers of a variant that diverged")
        return VariantEvaluation(message.name, None)
    paired = _paired(field, message, num_eval_examples, spec)
    metrics = metrics_from_proto(f"{field}.metrics", message.metrics, spec)
    details = details_from_proto(f"{field}.details", message.details, metrics, num_eval_examples, spec)
    measured = Evaluation.with_details(metrics, num_eval_examples, details)
    return VariantEvaluation(message.name, paired, measured if measured.says_anything else Evaluation())


def _paired(field: str, message: pb.VariantEvaluation, num_eval_examples: int, spec: TaskSpec) -> PairedLoss:
    least = num_eval_examples if spec.kind in _WITH_A_LOSS_EACH else 1
    if not 1 <= least <= message.num_examples <= num_eval_examples:
        expected = f"{least} to " * (least != num_eval_examples) + f"{num_eval_examples}, as in num_eval_examples"
        raise _invalid(f"{field}.num_examples", f"expected {expected}, got {message.num_examples}")
    _require_loss(f"{field}.loss", message.loss, spec)
    _require_loss(f"{field}.loss_difference", message.loss - message.loss_difference, spec, "loss - loss_difference: ")
    deviations: float | None = None
    if message.HasField("squared_deviations"):
        deviations = message.squared_deviations
        most = MAX_METRIC if message.num_examples > 1 else 0.0
        if not 0.0 <= deviations <= most:  # NaN fails this check too
            text = f"expected a number from 0 to {most:g}, got {deviations}"
            raise _invalid(f"{field}.squared_deviations", text)
    return PairedLoss(message.num_examples, message.loss, message.loss_difference, deviations)


def _require_loss(field: str, value: float, spec: TaskSpec, what: str = "") -> None:
    """Check that a mean loss is possible, up to rounding."""
    low, high = spec.metric_bounds.get("loss", (-MAX_METRIC, MAX_METRIC))
    rounding = ROUNDING * max(1.0, abs(value)) if math.isfinite(value) else 0.0
    if not low - rounding <= value <= high + rounding:  # NaN fails this check too
        raise _invalid(field, f"{what}expected a number from {low:g} to {high:g}, got {value}")


def _invalid(field: str, text: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {text}", field=field)
