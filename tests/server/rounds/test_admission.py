"""Which updates may count in a round."""

import pytest

from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_server.rounds.transitions import Step
from tests.server.rounds.driven import claim, engine, finish_round, opened


def test_an_update_counts_once_however_often_it_comes():
    rounds = opened()
    assert rounds.counted_in(claim("a")) is None
    rounds.count(claim("a"))
    assert rounds.counted_in(claim("a")) == 1
    rounds.count(claim("b", "qqp"))
    rounds.advance(1.0)
    rounds.committed(1.0)
    assert rounds.counted_in(claim("a")) == 1  # also after the round has closed


def test_another_update_of_the_same_client_is_refused():
    rounds = opened()
    rounds.count(claim("a"))
    with pytest.raises(StaleRoundError, match="another update of client 'a' already counts in round 1"):
        rounds.count(claim("a", update_id="u2"))


@pytest.mark.parametrize("round_", [0, 2])
def test_an_update_for_another_round_is_refused(round_):
    with pytest.raises(StaleRoundError, match=rf"for round {round_}, but the run is at round 1 \(open\)"):
        opened().check(claim(round_=round_))


def test_an_update_for_a_round_that_is_not_open_is_refused():
    with pytest.raises(StaleRoundError, match=r"at round 1 \(waiting\)"):
        engine().check(claim())


def test_a_client_outside_the_cohort_is_refused():
    rounds = opened()
    rounds.join("late", "sst2", 0.0)
    with pytest.raises(StaleRoundError, match="'late' is not in the cohort of round 1"):
        rounds.check(claim("late"))


def test_a_client_cannot_change_its_task_within_a_round():
    with pytest.raises(InvalidRequestError, match="takes part in round 1 as 'sst2', got 'qqp'"):
        opened().check(claim("a", "qqp"))


def test_training_rounds_take_no_metrics_alone_and_evaluations_nothing_else():
    with pytest.raises(InvalidRequestError, match="round 1 expects parameters or a delta, got metrics"):
        opened().check(claim(kind="metrics"))
    rounds = opened(num_rounds=1)
    finish_round(rounds, 1)
    assert rounds.advance(1.0) is Step.OPENED
    assert (rounds.round, rounds.purpose) == (2, "evaluate")
    with pytest.raises(InvalidRequestError, match="round 2 expects metrics alone, got parameters"):
        rounds.check(claim(round_=2))


def test_of_a_synchronous_run_only_the_open_rounds_own_model_will_do():
    rounds = opened()
    assert rounds.view.oldest_base_round == 1
    rounds.count(claim("a"))
    rounds.count(claim("b", "qqp"))
    rounds.advance(1.0)
    assert rounds.view.oldest_base_round == 2
    rounds.committed(1.0)
    assert rounds.view.oldest_base_round == 2
