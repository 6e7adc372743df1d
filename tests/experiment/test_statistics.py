"""The statistics of a comparison, against SciPy and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedmtl_experiment.statistics import paired_difference, ratio_of_means, summary

values = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=10)


@given(values)
def test_a_summary_is_scipys_mean_and_sample_deviation(pairs):
    ours = [one for one, _ in pairs]
    found = summary(ours)
    assert found.mean == pytest.approx(np.mean(ours), abs=1e-12)
    assert found.std == pytest.approx(np.std(ours, ddof=1), abs=1e-12)


@given(values)
def test_a_paired_difference_has_scipys_mean_and_standard_error(pairs):
    ours = {seed: one for seed, (one, _) in enumerate(pairs)}
    theirs = {seed: other for seed, (_, other) in enumerate(pairs)}
    found = paired_difference(ours, theirs)
    assert found is not None
    each = [one - other for one, other in pairs]
    assert found.mean == pytest.approx(np.mean(each), abs=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(each), abs=1e-12)


def test_a_difference_is_paired_by_seed_and_not_by_place():
    """0.3 - 0.1 and 0.4 - 0.4: mean 0.1, deviation sqrt(0.02), error sqrt(0.02) / sqrt(2) = 0.1."""
    found = paired_difference({1: 0.3, 2: 0.4, 3: 0.9}, {2: 0.4, 1: 0.1, 4: 0.0})
    assert found is not None
    assert (found.n, found.mean, found.standard_error) == (2, pytest.approx(0.1), pytest.approx(0.1))


def test_one_seed_has_no_spread_and_none_has_no_difference():
    one = paired_difference({1: 0.5}, {1: 0.25})
    assert one is not None
    assert (one.mean, one.standard_error) == (0.25, None)
    assert summary([0.5]).std is None
    assert paired_difference({1: 0.5}, {2: 0.5}) is None


def test_a_ratio_is_of_means_over_common_seeds():
    assert ratio_of_means({1: 0.2, 2: 0.4, 3: 9.0}, {1: 0.5, 2: 0.1}) == pytest.approx(1.0)  # 0.3 / 0.3
    assert ratio_of_means({1: 0.2}, {2: 0.5}) is None
    assert ratio_of_means({1: 0.2}, {1: 0.0}) is None
    assert not math.isnan(ratio_of_means({1: 0.0}, {1: 0.5}) or 0.0)
