"""A run's rounds from the first to the last, driven by hand."""

import pytest

from fedmtl_core.errors import StaleRoundError
from fedmtl_server.rounds.transitions import Phase, Step
from fedmtl_server.rounds.waiting import waiting_for
from tests.server.rounds.driven import claim, commit, engine, finish_round, opened, opened_with, over_selected


def test_a_round_opens_when_every_task_has_its_quorum():
    rounds = engine(min_clients={"sst2": 2, "qqp": 1})
    rounds.join("a", "sst2", 0.0)
    assert rounds.advance(0.0) is None
    assert waiting_for(rounds.view, 0.0) == "1 more sst2 client, 1 more qqp client"
    rounds.join("b", "qqp", 0.0)
    assert rounds.advance(1.0) is None
    rounds.join("c", "sst2", 0.0)
    assert rounds.advance(2.0) is Step.OPENED
    assert (rounds.phase, rounds.round, rounds.purpose) == (Phase.OPEN, 1, "train")


def test_the_first_round_waits_for_its_quorum_without_end():
    rounds = engine()
    rounds.join("a", "sst2", 0.0)
    assert rounds.next_wakeup(0.0) is None
    assert rounds.advance(1e6) is None


def test_the_cohort_is_in_the_order_of_client_ids_whoever_came_first():
    assert list(opened().cohort) == ["a", "b"]


def test_a_round_closes_when_all_have_reported():
    rounds = opened()
    rounds.count(claim("a"))
    assert rounds.advance(1.0) is None
    assert waiting_for(rounds.view, 1.0) == "1 of 2 updates: b (qqp), 99 s left"
    rounds.count(claim("b", "qqp"))
    assert rounds.advance(2.0) is Step.CLOSED
    assert rounds.phase is Phase.AGGREGATING


def test_a_round_closes_at_its_deadline_with_what_is_there():
    rounds = opened()
    rounds.count(claim("a"))
    assert rounds.next_wakeup(1.0) == 99.0
    assert rounds.advance(99.9) is None
    assert rounds.advance(100.0) is Step.CLOSED


def test_a_round_nobody_reported_in_is_abandoned_and_opened_anew():
    rounds = opened()
    assert rounds.advance(100.0) is Step.ABANDONED
    assert (rounds.phase, rounds.round) == (Phase.WAITING, 1)
    assert rounds.advance(100.0) is Step.OPENED


def test_after_a_time_without_anybody_all_get_the_time_to_come_back():
    rounds = opened(num_rounds=9)
    finish_round(rounds, 1)
    rounds.leave("a", 2.0)
    rounds.leave("b", 2.0)
    rounds.join("b", "qqp", 500.0)
    assert rounds.advance(501.0) is None
    rounds.join("a", "sst2", 510.0)
    assert rounds.advance(510.0) is Step.OPENED


def test_a_run_whose_training_is_done_ends_though_nobody_is_left_to_evaluate_it():
    rounds = opened(num_rounds=1)
    finish_round(rounds, 1)
    rounds.leave("a", 1.0)
    rounds.leave("b", 1.0)
    assert rounds.next_wakeup(1.0) == 30.0
    assert rounds.advance(31.0) is Step.OPENED
    assert rounds.advance(31.0) is Step.CLOSED
    rounds.committed(31.0)
    assert rounds.phase is Phase.FINISHED


def test_an_evaluation_nobody_answers_ends_the_run_at_its_deadline():
    rounds = opened(num_rounds=1)
    finish_round(rounds, 1)
    assert rounds.advance(1.0) is Step.OPENED
    assert rounds.advance(101.0) is Step.CLOSED
    rounds.committed(101.0)
    assert rounds.phase is Phase.FINISHED


def test_a_run_is_its_rounds_and_an_evaluation():
    rounds = opened(num_rounds=2)
    for round_ in (1, 2):
        finish_round(rounds, round_)
        assert rounds.advance(float(round_)) is Step.OPENED
    finish_round(rounds, 3, kind="metrics")
    assert rounds.phase is Phase.FINISHED
    assert rounds.advance(1e9) is None
    assert rounds.next_wakeup(0.0) is None
    assert waiting_for(rounds.view, 0.0) == ""


def test_a_client_may_come_for_the_first_time_in_any_round():
    rounds = opened()
    rounds.join("late", "sst2", 0.0)
    finish_round(rounds, 1)
    rounds.advance(1.0)
    assert list(rounds.cohort) == ["a", "b", "late"]


def test_a_later_round_goes_on_without_a_quorum_after_its_timeout():
    rounds = opened(num_rounds=9)
    rounds.leave("b", 0.0)
    rounds.count(claim("a"))
    assert rounds.advance(5.0) is Step.CLOSED
    rounds.committed(5.0)
    assert rounds.advance(5.0) is None
    assert waiting_for(rounds.view, 6.0) == "1 more qqp client, 29 s left"
    assert rounds.next_wakeup(6.0) == 29.0
    assert rounds.advance(35.0) is Step.OPENED
    assert list(rounds.cohort) == ["a"]


def test_a_task_waited_for_in_vain_is_not_waited_for_again_until_it_comes_back():
    rounds = opened(num_rounds=9)
    rounds.leave("b", 0.0)
    rounds.count(claim("a"))
    rounds.advance(5.0)
    rounds.committed(5.0)
    rounds.advance(35.0)
    rounds.count(claim("a", round_=2, update_id="u2"))
    assert rounds.advance(36.0) is Step.CLOSED
    rounds.committed(36.0)
    assert rounds.advance(36.0) is Step.OPENED  # at once
    rounds.join("c", "qqp", 0.0)
    rounds.leave("c", 37.0)
    rounds.count(claim("a", round_=3, update_id="u3"))
    assert rounds.advance(38.0) is Step.CLOSED
    rounds.committed(38.0)
    assert rounds.advance(38.0) is None  # a qqp client was there again: it is waited for


def test_without_any_client_a_run_waits_and_says_so():
    rounds = opened(num_rounds=9)
    finish_round(rounds, 1)
    rounds.leave("a", 1.0)
    rounds.leave("b", 1.0)
    assert rounds.advance(1e6) is None
    assert rounds.next_wakeup(1e6) is None
    assert waiting_for(rounds.view, 1e6) == "1 more sst2 client, 1 more qqp client"


# Cohorts of some of the clients.


def test_of_a_fraction_of_the_clients_only_those_chosen_count():
    rounds = opened_with(dict.fromkeys("abcd", "sst2"), min_clients={"sst2": 1}, cohort="fraction", cohort_fraction=0.5)
    chosen = list(rounds.cohort)
    assert len(chosen) == 2
    other = next(client_id for client_id in "abcd" if client_id not in chosen)
    with pytest.raises(StaleRoundError, match=f"'{other}' is not in the cohort of round 1"):
        rounds.count(claim(other))
    for client_id in chosen:
        rounds.count(claim(client_id))
    assert rounds.advance(1.0) is Step.CLOSED


def test_the_evaluation_is_everybodys():
    rule_ = {"cohort": "fraction", "cohort_fraction": 0.25}
    rounds = opened_with(dict.fromkeys("abcd", "sst2"), num_rounds=1, min_clients={"sst2": 1}, **rule_)
    (chosen,) = rounds.cohort
    rounds.count(claim(chosen))
    commit(rounds)
    assert (rounds.purpose, list(rounds.cohort)) == ("evaluate", ["a", "b", "c", "d"])
    for client_id in "abc":
        rounds.count(claim(client_id, "sst2", 2, "u2", "metrics"))
        assert rounds.advance(2.0) is None


def test_of_more_clients_than_are_needed_the_first_ones_close_the_round():
    rounds = over_selected()
    rounds.count(claim("c"))
    assert rounds.advance(1.0) is None
    rounds.count(claim("a"))
    assert rounds.advance(2.0) is Step.CLOSED
    with pytest.raises(StaleRoundError, match=r"at round 1 \(aggregating\)"):
        rounds.check(claim("b"))


def test_to_evaluate_everybody_is_waited_for_though_fewer_are_enough_to_train():
    rounds = over_selected(num_rounds=1)
    for client_id in "ab":
        rounds.count(claim(client_id))
    commit(rounds)
    for client_id in "abc":
        assert rounds.advance(2.0) is None
        rounds.count(claim(client_id, "sst2", 2, "u2", "metrics"))
    assert rounds.advance(2.0) is Step.CLOSED


def test_each_task_has_to_have_enough_of_its_own():
    clients = dict.fromkeys("abc", "sst2") | {"d": "qqp", "e": "qqp"}
    rounds = opened_with(clients, cohort="over_select", cohort_size=1, cohort_extra=2)
    for client_id in "abc":
        rounds.count(claim(client_id))
        assert rounds.advance(1.0) is None
    rounds.count(claim("e", "qqp"))
    assert rounds.advance(1.0) is Step.CLOSED


def test_a_member_whose_task_has_enough_does_not_hold_a_round_that_nobody_needed_is_left_in():
    clients = {"a": "sst2", "b": "sst2", "c": "qqp"}
    rounds = opened_with(clients, cohort="over_select", cohort_size=1, cohort_extra=2)
    rounds.count(claim("a"))
    rounds.leave("c", 10.0)
    assert rounds.next_wakeup(10.0) == 5.0
    assert rounds.advance(15.0) is Step.CLOSED


def test_where_too_few_are_left_to_be_enough_the_round_closes_with_them():
    rounds = over_selected()
    rounds.leave("b", 1.0)
    rounds.leave("c", 1.0)
    rounds.count(claim("a"))
    assert rounds.advance(5.9) is None
    assert rounds.advance(6.0) is Step.CLOSED


def test_a_quorum_beyond_the_size_is_what_is_enough():
    rounds = over_selected(size=1, extra=0, min_clients={"sst2": 3}, on_missing_quorum="fail")
    for client_id in "ab":
        rounds.count(claim(client_id))
        assert rounds.advance(1.0) is None
    rounds.count(claim("c"))
    assert rounds.advance(1.0) is Step.CLOSED


def test_an_abandoned_round_is_drawn_anew_lest_it_wait_for_the_same_dead_clients_for_ever():
    """One of four a time, none of which ever reports: before long another is asked."""
    rule_ = {"cohort": "fraction", "cohort_fraction": 0.25}
    rounds = opened_with(dict.fromkeys("abcd", "sst2"), min_clients={"sst2": 1}, **rule_)
    asked = set(rounds.cohort)
    for attempt in range(1, 20):
        assert rounds.advance(attempt * 100.0) is Step.ABANDONED
        assert (rounds.advance(attempt * 100.0), rounds.round) == (Step.OPENED, 1)
        asked |= rounds.cohort.keys()
    assert asked == set("abcd")


# Training that stops early.


def test_training_that_stops_is_followed_by_the_evaluation_and_the_end():
    rounds = opened(num_rounds=9)
    finish_round(rounds, 1)
    rounds.stop_training()
    assert rounds.purpose == "evaluate"
    assert rounds.advance(1.0) is Step.OPENED
    finish_round(rounds, 2, kind="metrics")
    assert rounds.phase is Phase.FINISHED


def test_training_that_is_over_is_not_prolonged_by_stopping_it():
    rounds = opened(num_rounds=1)
    finish_round(rounds, 1)
    rounds.stop_training()
    assert (rounds.round, rounds.purpose) == (2, "evaluate")
