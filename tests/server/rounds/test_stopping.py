"""When training ends before its last round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.config import EarlyStoppingConfig
from fedmtl_server.rounds.stopping import should_stop


def stops(patience, by_round, **section) -> bool:
    return should_stop(EarlyStoppingConfig(patience=patience, **section), by_round)


def measured(*values):
    return dict(enumerate(values))


def test_training_goes_on_while_nothing_is_measured():
    assert not stops(1, {})
    assert not stops(1, {"sst2": {}})


def test_training_that_has_no_patience_set_goes_on_whatever_is_measured():
    assert not stops(None, {"sst2": measured(0.5, 0.4, 0.3, 0.2)})


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
    assert stops(2, {"sst2": measured(*values)}) is due


def test_an_improvement_has_to_be_more_than_the_threshold():
    assert stops(1, {"sst2": measured(0.5, 0.75)}, threshold=0.25)
    assert not stops(1, {"sst2": measured(0.5, 0.8125)}, threshold=0.25)


def test_small_steps_add_up_to_an_improvement():
    assert not stops(3, {"sst2": measured(0.0, 0.125, 0.25, 0.375)}, threshold=0.25)
    assert stops(3, {"sst2": measured(0.0, 0.125, 0.25, 0.25)}, threshold=0.25)


def test_training_goes_on_while_any_task_gets_better():
    assert not stops(1, {"sst2": measured(0.5, 0.5), "qqp": measured(0.5, 0.6)})
    assert stops(1, {"sst2": measured(0.5, 0.5), "qqp": measured(0.5, 0.5)})


def test_only_the_watched_tasks_matter():
    by_round = {"sst2": measured(0.5, 0.5), "qqp": measured(0.5, 0.6)}
    assert stops(1, by_round, watch=["sst2"])
    assert not stops(1, by_round, watch=["qqp"])
    assert not stops(1, by_round, watch=["stsb"])


def test_metrics_may_be_below_zero():
    assert not stops(1, {"cola": measured(-0.5, -0.25)})
    assert stops(1, {"cola": measured(-0.25, -0.5)})


def test_a_round_that_measured_nothing_counts_as_one_without_improvement():
    assert stops(2, {"sst2": {0: 0.5, 2: 0.5}})
    assert not stops(3, {"sst2": {0: 0.5, 2: 0.5}})


def test_a_task_whose_clients_are_gone_does_not_keep_training_going():
    by_round = {"sst2": measured(0.5, 0.5, 0.5, 0.5), "qqp": measured(0.5, 0.6)}
    assert not stops(3, by_round)  # qqp got better in round 1, two rounds ago
    assert stops(2, by_round)
    assert stops(2, by_round, watch=["qqp"])


def test_a_task_that_came_late_has_its_own_time():
    assert not stops(2, {"sst2": measured(0.5, 0.5, 0.5), "qqp": {2: 0.1}})


def test_what_is_not_a_number_is_no_improvement():
    nan = float("nan")
    assert stops(2, {"stsb": measured(0.5, nan, nan)})
    assert not stops(2, {"stsb": {7: nan}})


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 4))
def test_training_ends_when_the_best_of_the_last_rounds_is_no_better_than_the_best_before(values, patience):
    due = len(values) > patience and max(values[-patience:]) <= max(values[:-patience])
    assert stops(patience, {"sst2": measured(*map(float, values))}) is due
