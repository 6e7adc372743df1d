"""Paired losses: sums of clients give what all their rows together give, in any order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.paired import PairedLoss, VariantEvaluation

LOSSES = st.floats(0, 1e3, width=32)
PARTS = st.lists(st.lists(st.tuples(LOSSES, LOSSES), min_size=1, max_size=8), min_size=1, max_size=4)


def paired(rows):
    variant, model = np.array(rows, dtype=np.float64).T
    return PairedLoss.of(variant, model)


@given(PARTS)
def test_what_clients_send_gives_the_figures_of_all_rows_together(parts):
    pooled = PairedLoss.pooled([paired(rows) for rows in parts])
    variant, model = np.array([row for rows in parts for row in rows], dtype=np.float64).T
    differences = variant - model
    assert pooled.num_examples == len(variant)
    assert pooled.loss == pytest.approx(variant.mean(), rel=1e-12)
    assert pooled.difference == pytest.approx(differences.mean(), rel=1e-9, abs=1e-12 * np.abs(variant).max())
    if len(variant) < 2:
        assert pooled.standard_error is None
    else:
        expected = differences.std(ddof=1) / math.sqrt(len(differences))
        assert pooled.standard_error == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(PARTS)
def test_the_order_of_clients_changes_no_bit(parts):
    sent = [paired(rows) for rows in parts]
    assert len({PairedLoss.pooled(order) for order in itertools.permutations(sent)}) == 1


def test_figures_that_can_be_checked_by_hand():
    pooled = PairedLoss.pooled([paired([(1.0, 2.0), (3.0, 2.0)]), paired([(0.0, 3.0)])])
    assert pooled == PairedLoss(3, 4 / 3, -1.0, 8.0)  # the differences are -1, 1 and -3
    assert pooled.standard_error == pytest.approx(math.sqrt(8 / 2 / 3))


def test_one_client_without_the_losses_of_its_rows_leaves_the_mean_without_an_error():
    pooled = PairedLoss.pooled([PairedLoss(1, 0.5, -0.5), paired([(1.0, 0.0)])])
    assert (pooled.difference, pooled.squared_deviations, pooled.standard_error) == (0.25, None, None)


def test_two_evaluations_are_the_same_only_with_the_same_metrics_and_figures():
    one = VariantEvaluation("own", paired([(1.0, 2.0)]), Evaluation({"f1": 0.5}, 1))
    assert one.same_as(VariantEvaluation("own", paired([(1.0, 2.0)]), Evaluation({"f1": 0.5}, 1)))
    assert not one.same_as(VariantEvaluation("own", None))
    assert not one.same_as(VariantEvaluation("own", one.paired, Evaluation({"f1": 0.25}, 1)))
