"""GLUE's metrics, against values worked out by hand."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmtl_core.tasks.evaluation import ClassCounts, Moments
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.kinds import measure
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import TaskSpec

BINARY = replace(PRESETS["qqp"], metrics=("accuracy", "f1", "matthews"))


def logits(*classes: int) -> np.ndarray:
    return np.eye(2)[list(classes)]


def test_accuracy_and_f1():
    values = measure(kind_of(PRESETS["qqp"]), logits(1, 1, 0, 0), np.array([1.0, 0.0, 1.0, 0.0]))
    assert values == {"accuracy": 0.5, "f1": 0.5}  # 2 of 4; precision 1/2, recall 1/2


def test_matthews_of_a_perfect_and_of_an_inverted_classifier():
    targets = np.array([0.0, 1.0, 1.0, 0.0])
    assert measure(kind_of(PRESETS["cola"]), logits(0, 1, 1, 0), targets)["matthews"] == pytest.approx(1.0)
    assert measure(kind_of(PRESETS["cola"]), logits(1, 0, 0, 1), targets)["matthews"] == pytest.approx(-1.0)


def test_pearson_and_spearman():
    values = measure(kind_of(PRESETS["stsb"]), np.array([[1.0], [2.0], [9.0]]), np.array([0.0, 1.0, 2.0]))
    assert values["spearman"] == pytest.approx(1.0)
    assert values["pearson"] == pytest.approx(8 / np.sqrt(2 * 38))  # cov 8, variances 2 and 38, times n


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([[1.0], [1.0]], "all predictions are the same"),
        ([[1.0]], "a correlation takes at least 2 rows"),
        ([[1.0], [NAN], [INF]], "2 of 3 outputs aren't finite"),
    ],
)
def test_a_correlation_of_constant_few_or_infinite_outputs_is_undefined_and_not_zero(outputs, reason):
    measured = measure(kind_of(PRESETS["stsb"]), np.array(outputs), np.arange(len(outputs), dtype=float))
    assert measured == {}
    assert measured.undefined == {"pearson": reason, "spearman": reason}


def test_a_correlation_with_constant_targets_is_undefined():
    measured = measure(kind_of(PRESETS["stsb"]), np.array([[1.0], [2.0]]), np.full(2, 3.0))
    assert measured == {}
    assert set(measured.undefined.values()) == {"all targets are the same"}


@pytest.mark.parametrize(
    ("predicted", "actual", "expected"),
    [
        ([0, 0, 0], [0, 0, 0], {"accuracy": 1.0}),  # no positive row, and none predicted: F1 has no value either
        ([0, 0, 1], [0, 0, 0], {"accuracy": pytest.approx(2 / 3), "f1": 0.0}),
        ([0, 0, 0], [0, 0, 1], {"accuracy": pytest.approx(2 / 3), "f1": 0.0}),
        ([1, 1, 1], [1, 1, 1], {"accuracy": 1.0, "f1": 1.0}),
        ([1, 0, 0], [1, 1, 0], {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3), "matthews": 0.5}),
    ],
)
def test_metrics_of_classes_are_undefined_exactly_where_their_denominators_are_zero(predicted, actual, expected):
    measured = measure(kind_of(BINARY), logits(*predicted), np.array(actual, dtype=float))
    assert measured == expected
    assert measured.undefined.keys() == {"accuracy", "f1", "matthews"} - expected.keys()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_outputs_that_are_not_finite_are_of_no_class(value):
    """The argmax of NaN is 0: a broken model would be right about every row of the first class."""
    outputs = np.array([[value, value], [1.0, 0.0]])
    measured = measure(kind_of(BINARY), outputs, np.zeros(2))
    assert (measured, measured.sums) == ({}, None)
    assert set(measured.undefined.values()) == {"1 of 2 outputs aren't finite"}


def test_masked_tokens_are_not_found_by_outputs_that_are_not_finite():
    kind = kind_of(TaskSpec("texts", "masked_lm", ("text",), ""))
    outputs = torch.tensor([[NAN, 0.0, 0.0], [0.0, 0.0, 1.0]])
    kept = kind.reduce_outputs(outputs)
    assert kept[1] == 2.0
    assert measure(kind, kept.numpy(), np.array([0.0, 2.0])).undefined == {
        "masked_accuracy": "1 of 2 outputs aren't finite"
    }


@pytest.mark.parametrize("rows", [1, 2, 3, 30])
def test_no_library_warns_of_an_evaluation_whatever_its_rows_are(rows):
    """They would do so at each evaluation of each client."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for targets in (np.zeros(rows), np.ones(rows), np.arange(rows) % 2.0):
            for outputs in (logits(*[0] * rows), logits(*[1] * rows), np.full((rows, 2), NAN)):
                measure(kind_of(BINARY), outputs, targets)
            for values in (np.zeros(rows), np.arange(rows) * 1e-9 + 5, np.full(rows, NAN), np.arange(rows) * 1e300):
                measure(kind_of(PRESETS["stsb"]), values[:, None], targets)


def test_sums_go_along_only_where_a_metric_is_not_the_clients_mean():
    """Class counts tell how a client's labels are distributed: accuracy needs none of that."""
    binary = logits(0, 1)
    assert measure(kind_of(PRESETS["sst2"]), binary, np.array([0.0, 1.0])).sums is None
    assert measure(kind_of(PRESETS["cola"]), binary, np.array([0.0, 1.0])).sums == ClassCounts((1, 1), (1, 1), (1, 1))
    only_spearman = replace(PRESETS["stsb"], metrics=("spearman",))
    assert measure(kind_of(only_spearman), np.array([[1.0], [2.0]]), np.array([0.0, 1.0])).sums is None
    assert measure(kind_of(PRESETS["stsb"]), np.array([[1.0], [2.0]]), np.array([0.0, 1.0])).sums == Moments(
        2, 3, 1, 5, 1, 2
    )
