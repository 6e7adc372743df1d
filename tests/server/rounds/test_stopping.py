"""When training ends before its last round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.config import EarlyStoppingConfig
from fedmtl_server.rounds.stopping import EarlyStopping


def early_stopping(patience, **given):
    return EarlyStopping(EarlyStoppingConfig(patience=patience, **given))


def measured(*values):
    return dict(enumerate(values))


def test_training_goes_on_while_nothing_is_measured():
    assert not early_stopping(1).is_due({})
    assert not early_stopping(1).is_due({"sst2": {}})


def test_training_goes_on_to_its_last_round_without_a_patience():
    assert not EarlyStopping(EarlyStoppingConfig()).is_due({"sst2": measured(0.5, 0.4, 0.3, 0.2)})


@pytest.mark.parametrize(
    ("values", "due"),
    [
        ([0.5], False),
        ([0.5, 0.6, 0.6], False),  # one round without anything better
        ([0.5, 0.6, 0.6, 0.6], True),  # two
        ([0.5, 0.6, 0.5, 0.7], False),
        ([0.5, 0.4, 0.3], True),
        ([0.5, 0.4, 0.45], True),  # better than the round before, not than the best
    ],
)
def test_training_ends_after_so_many_rounds_that_were_no_better_than_the_best(values, due):
    assert early_stopping(2).is_due({"sst2": measured(*values)}) is due


def test_an_improvement_has_to_be_more_than_the_threshold():
    rule = early_stopping(1, threshold=0.25)
    assert rule.is_due({"sst2": measured(0.5, 0.75)})
    assert not rule.is_due({"sst2": measured(0.5, 0.8125)})


def test_small_steps_add_up_to_an_improvement():
    rule = early_stopping(3, threshold=0.25)
    assert not rule.is_due({"sst2": measured(0.0, 0.125, 0.25, 0.375)})
    assert rule.is_due({"sst2": measured(0.0, 0.125, 0.25, 0.25)})


def test_training_goes_on_while_any_task_gets_better():
    rule = early_stopping(1)
    assert not rule.is_due({"sst2": measured(0.5, 0.5), "qqp": measured(0.5, 0.6)})
    assert rule.is_due({"sst2": measured(0.5, 0.5), "qqp": measured(0.5, 0.5)})


def test_only_the_watched_tasks_matter():
    by_round = {"sst2": measured(0.5, 0.5), "qqp": measured(0.5, 0.6)}
    assert early_stopping(1, watch=["sst2"]).is_due(by_round)
    assert not early_stopping(1, watch=["qqp"]).is_due(by_round)
    assert not early_stopping(1, watch=["stsb"]).is_due(by_round)


def test_metrics_may_be_below_zero():
    assert not early_stopping(1).is_due({"cola": measured(-0.5, -0.25)})
    assert early_stopping(1).is_due({"cola": measured(-0.25, -0.5)})


def test_a_round_that_measured_nothing_counts_as_one_without_improvement():
    assert early_stopping(2).is_due({"sst2": {0: 0.5, 2: 0.5}})
    assert not early_stopping(3).is_due({"sst2": {0: 0.5, 2: 0.5}})


def test_a_task_whose_clients_are_gone_does_not_keep_training_going():
    by_round = {"sst2": measured(0.5, 0.5, 0.5, 0.5), "qqp": measured(0.5, 0.6)}
    assert not early_stopping(3).is_due(by_round)  # qqp got better in round 1, two rounds ago
    assert early_stopping(2).is_due(by_round)
    assert early_stopping(2, watch=["qqp"]).is_due(by_round)


def test_a_task_that_came_late_has_its_own_time():
    assert not early_stopping(2).is_due({"sst2": measured(0.5, 0.5, 0.5), "qqp": {2: 0.1}})


def test_what_is_not_a_number_is_no_improvement():
    nan = float("nan")
    assert early_stopping(2).is_due({"stsb": measured(0.5, nan, nan)})
    assert not early_stopping(2).is_due({"stsb": {7: nan}})


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 4))
def test_training_ends_when_the_best_of_the_last_rounds_is_no_better_than_the_best_before(values, patience):
    due = len(values) > patience and max(values[-patience:]) <= max(values[:-patience])
    assert early_stopping(patience).is_due({"sst2": measured(*map(float, values))}) is due
