"""What counts of a candidate beside its control and its main metric, if clients report different things."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.paired import PairedLoss, VariantEvaluation
from fedmtl_core.tasks.registry import kind_of
from fedmtl_server.aggregation.variants import VariantResult
from fedmtl_server.sharing.selection_rules import beyond_control
from tests.support import PRESETS


def losses(seed, mean, rows=200):
    return np.random.default_rng(seed).normal(mean, 0.3, rows)


def paired(variant, model):
    return PairedLoss.of(variant, model)


def test_a_candidate_and_its_control_are_compared_over_the_clients_that_evaluated_both():
    model = {client: losses(seed, 1.0) for seed, client in enumerate("abc")}
    candidate = {client: paired(values - losses(9, 0.3), values) for client, values in model.items()}
    control = {client: paired(model[client] - losses(8, 0.1), model[client]) for client in "ab"}
    del candidate["b"]
    found = beyond_control(candidate, control)
    mine, other = -losses(9, 0.3), -losses(8, 0.1)
    assert found.difference == pytest.approx(mine.mean() - other.mean())
    assert found.standard_error == pytest.approx(stats.sem(mine) + stats.sem(other))
    assert found.standard_error >= stats.sem(mine - other)
    assert found.num_examples == 200


def test_without_a_common_client_or_a_standard_error_there_is_no_comparison():
    one = paired(losses(1, 0.9), losses(2, 1.0))
    assert beyond_control({"a": one}, {"b": one}) is None
    assert beyond_control({"a": one}, {}) is None
    assert beyond_control({"a": one}, {"a": PairedLoss(200, 0.9, -0.1)}) is None


def result(*clients, metric="accuracy"):
    """The result of a variant: by client, the metric's value for the model and for the variant; NaN for an undefined
    one, and None for one that isn't reported."""

    def evaluation(value, rows):
        return Evaluation({}, rows) if value is None else Evaluation.of({metric: value}, rows)

    any_loss = PairedLoss(100, 1.0, -0.1, 0.1)
    models = {f"c{place}": evaluation(model, 100) for place, (model, _) in enumerate(clients)}
    variants = {
        f"c{place}": VariantEvaluation("with.b", any_loss, evaluation(variant, 100))
        for place, (_, variant) in enumerate(clients)
    }
    return VariantResult("with.b", variants, models)


@pytest.mark.parametrize(
    ("clients", "lowers"),
    [
        ([(0.8, 0.79)], True),
        ([(0.8, 0.8)], False),
        ([(0.8, 0.81)], False),
        ([(0.8, 0.9), (0.8, 0.69)], True),
        ([(0.8, 0.9), (0.8, 0.71)], False),
        ([(0.8, math.nan)], True),  # as Matthews' coefficient of a model that predicts one class only
        ([(math.nan, 0.1)], False),
        ([(None, 0.1)], False),
        ([(0.8, None)], False),
        ([], False),
        ([(0.5, None), (0.9, 0.8)], True),  # the client that doesn't report it for both doesn't count
        ([(None, 0.1), (0.7, 0.8)], False),
    ],
)
def test_a_variant_lowers_a_metric_over_the_clients_that_report_it_for_both(clients, lowers):
    assert result(*clients).lowers("accuracy") == lowers


def test_rounding_does_not_lower_a_metric():
    """The clients' means are 0.6 both times, in another order."""
    assert not result((0.1, 0.7), (0.7, 0.1), (1.0, 1.0)).lowers("accuracy")
    thirds = [(1 / 3, 2 / 3), (2 / 3, 1 / 3), (0.1, 0.1)]
    assert not result(*thirds).lowers("accuracy")


def test_a_metric_over_all_rows_is_compared_with_one_over_all_rows_only():
    """Matthews' coefficient over the rows of both clients isn't the mean of theirs."""
    spec = PRESETS["cola"]
    targets = [np.array([1] * 90 + [0] * 10), np.array([1] * 10 + [0] * 90)]
    outputs = [np.eye(2)[np.where(np.arange(100) % 9 == 0, 1 - one, one)] for one in targets]
    kind, evaluations = kind_of(spec), []
    for given, wanted in zip(outputs, targets, strict=True):
        sums = kind.sums(given, wanted)
        evaluations.append(Evaluation.of({"matthews": sums.metric("matthews")}, 100, sums))
    both = {f"c{place}": one for place, one in enumerate(evaluations)}
    any_loss = PairedLoss(100, 1.0, -0.1, 0.1)

    def lowers(variants):
        found = {client: VariantEvaluation("with.b", any_loss, one) for client, one in variants.items()}
        return VariantResult("with.b", found, both).lowers("matthews")

    assert not lowers(both)
    plain = {client: Evaluation(dict(one.metrics), one.num_examples) for client, one in both.items()}
    assert not lowers(plain)  # equal predictions, without their sums
