"""Evaluations of variants on the wire: what is possible comes back whole, and anything else is refused by its field."""

from __future__ import annotations

import dataclasses
import math

import pytest
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import InvalidRequestError, LimitExceededError, RequestError
from fedmtl_core.tasks.evaluation import ClassCounts, Evaluation
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.paired import PairedLoss, VariantEvaluation
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.variant_messages import MAX_VARIANTS, variant_to_proto, variants_from_proto

QQP, STSB = PRESETS["qqp"], PRESETS["stsb"]
TEXTS = TaskSpec("texts", "masked_lm", ("text",), "")
COUNTS = ClassCounts((1, 2), (2, 3), (2, 3))
OWN = VariantEvaluation("own", PairedLoss(5, 0.5, -0.25, 0.125), Evaluation({"f1": 0.5, "loss": 0.5}, 5, {}, COUNTS))


def sent(*variants: VariantEvaluation, size: int = 5, spec: TaskSpec = QQP) -> tuple[VariantEvaluation, ...]:
    return variants_from_proto([variant_to_proto(one) for one in variants], size, spec)


@pytest.mark.parametrize(
    "variant",
    [
        OWN,
        VariantEvaluation("no-metrics", PairedLoss(5, 0.5, -0.25, 0.0)),
        VariantEvaluation("no_error", PairedLoss(5, 0.5, 0.25, None), Evaluation({}, 5, {"f1": ""})),
        VariantEvaluation("bad", None),
    ],
    ids=lambda one: one.name,
)
def test_an_evaluation_comes_back_whole(variant):
    (got,) = sent(variant)
    assert got.same_as(variant)


def test_several_come_back_in_their_order():
    assert [one.name for one in sent(VariantEvaluation("b", None), OWN)] == ["b", "own"]


def test_a_task_of_tokens_has_rows_without_a_loss():
    assert sent(VariantEvaluation("own", PairedLoss(3, 0.5, 0.0, 0.0)), spec=TEXTS)[0].paired.num_examples == 3


def changed(**fields):
    message = variant_to_proto(OWN)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (changed(name=""), r"variants\[0\]\.name: expected 1 to 64"),
        (changed(name="a b"), r"variants\[0\]\.name: expected 1 to 64"),
        (changed(name="x" * 65), r"variants\[0\]\.name: expected 1 to 64"),
        (changed(num_examples=4), r"variants\[0\]\.num_examples: expected 5, as in num_eval_examples, got 4"),
        (changed(num_examples=6), r"variants\[0\]\.num_examples: expected 5, as in num_eval_examples, got 6"),
        (changed(loss=math.nan), r"variants\[0\]\.loss: expected a number from 0 to 3\.40282e\+38, got nan"),
        (changed(loss=math.inf), r"variants\[0\]\.loss: expected a number .* got inf"),
        (changed(loss=-0.1), r"variants\[0\]\.loss: expected a number .* got -0\.1"),
        (changed(loss=1e39), r"variants\[0\]\.loss: expected a number .* got 1e\+39"),
        (changed(loss_difference=math.nan), r"variants\[0\]\.loss_difference: loss - loss_difference: expected"),
        (changed(loss_difference=-math.inf), r"variants\[0\]\.loss_difference: loss - loss_difference: expected"),
        (changed(loss_difference=0.6), r"variants\[0\]\.loss_difference: loss - loss_difference: .* got -0\.0"),
        (changed(squared_deviations=-1.0), r"variants\[0\]\.squared_deviations: expected a number from 0 to 1e\+100"),
        (changed(squared_deviations=math.nan), r"variants\[0\]\.squared_deviations: expected a number"),
        (changed(squared_deviations=1e101), r"variants\[0\]\.squared_deviations: expected a number"),
        (changed(diverged=True), r"variants\[0\]\.diverged: expected no numbers of a variant that diverged"),
        (pb.VariantEvaluation(name="own"), r"variants\[0\]\.num_examples: expected 5"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(message, said):
    with pytest.raises(InvalidRequestError, match=said) as refused:
        variants_from_proto([message], 5, QQP)
    assert refused.value.field.startswith("variants[0]")


def test_one_row_has_no_deviation():
    one = dataclasses.replace(OWN.paired, num_examples=1, squared_deviations=0.5)
    with pytest.raises(InvalidRequestError, match=r"squared_deviations: expected a number from 0 to 0, got 0\.5"):
        sent(VariantEvaluation("own", one), size=1)


@pytest.mark.parametrize("count", [-1, 0, 6])
def test_a_task_of_tokens_has_a_loss_for_one_row_at_least_and_no_more_than_its_rows(count):
    with pytest.raises(InvalidRequestError, match=f"num_examples: expected 1 to 5, as in num_eval.* got {count}"):
        sent(VariantEvaluation("own", PairedLoss(count, 0.5, 0.0)), spec=TEXTS)


def test_metrics_and_their_sums_are_looked_at_as_those_of_the_slice():
    message = changed()
    message.metrics["f1"] = 1.5
    with pytest.raises(InvalidRequestError, match=r"variants\[0\]\.metrics: f1: expected a number from 0 to 1"):
        variants_from_proto([message], 5, QQP)
    with pytest.raises(InvalidRequestError, match=r"variants\[0\]\.details\.class_counts: expected none"):
        variants_from_proto([changed(num_examples=5)], 5, STSB)


def test_a_name_occurs_once():
    with pytest.raises(InvalidRequestError, match=r"variants\[1\]\.name: expected each name once, got 'own' twice"):
        sent(OWN, OWN)


def test_there_are_at_most_so_many():
    names = [VariantEvaluation(f"v{number}", None) for number in range(MAX_VARIANTS + 1)]
    assert len(sent(*names[:-1])) == MAX_VARIANTS
    with pytest.raises(LimitExceededError, match="variants: at most 16 variants are allowed, got 17"):
        sent(*names)


def test_every_refusal_is_an_error_of_the_request():
    with pytest.raises(RequestError):
        variants_from_proto([pb.VariantEvaluation()], 0, QQP)
