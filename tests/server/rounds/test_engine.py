"""The round's state machine, driven by hand."""

import contextlib
import copy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_core.wire.updates import Update
from fedmtl_server.rounds.completion import missing_quorum
from fedmtl_server.rounds.deadlines import deadline, deadline_for
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.transitions import Phase, Step
from fedmtl_server.rounds.waiting import waiting_for
from tests.server.rounds.driven import (
    claim,
    commit,
    delta,
    engine,
    finish_round,
    opened,
    opened_async,
    opened_with,
    over_selected,
    round_rules,
)


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


def test_an_upload_in_progress_keeps_its_round_open_past_the_deadline():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.progress("b", 95.0)
    assert rounds.advance(100.0) is None
    rounds.progress("b", 104.0)
    assert rounds.advance(113.0) is None
    assert rounds.next_wakeup(113.0) == 1.0
    assert rounds.advance(114.0) is Step.CLOSED


def test_an_upload_that_only_trickles_keeps_it_open_to_twice_the_deadline_at_most():
    rounds = opened()
    rounds.count(claim("a"))
    for second in range(95, 200, 5):
        rounds.progress("b", float(second))
        assert rounds.advance(second + 0.1) is None
    assert rounds.advance(200.0) is Step.CLOSED


def test_a_member_whose_upload_is_moving_is_waited_for_though_its_watch_is_gone():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.leave("b", 10.0)
    rounds.progress("b", 14.0)
    assert rounds.advance(15.0) is None
    assert rounds.advance(24.0) is Step.CLOSED


def test_a_member_that_comes_back_with_another_task_is_not_waited_for():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.leave("b", 10.0)
    rounds.join("b", "sst2", 11.0)
    assert rounds.advance(15.0) is Step.CLOSED


def test_a_member_whose_id_is_taken_up_with_another_task_is_not_waited_for_beyond_its_grace():
    """The new process takes the old one's place without its having left."""
    rounds = opened()
    rounds.count(claim("a"))
    rounds.join("b", "sst2", 10.0)
    assert rounds.next_wakeup(10.0) == 5.0
    assert rounds.advance(14.9) is None
    rounds.leave("b", 14.9)  # nor does the new one's leaving make it longer
    assert rounds.advance(15.0) is Step.CLOSED


def test_a_member_that_takes_its_id_back_with_its_own_task_is_waited_for_again():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.join("b", "sst2", 10.0)
    rounds.join("b", "qqp", 12.0)
    assert rounds.advance(99.9) is None
    rounds.count(claim("b", "qqp"))
    assert rounds.advance(99.9) is Step.CLOSED


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


def test_a_member_that_left_is_waited_for_no_longer_than_its_grace():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.leave("b", 10.0)
    assert rounds.next_wakeup(10.0) == 5.0
    assert rounds.advance(14.9) is None
    assert rounds.advance(15.0) is Step.CLOSED


def test_a_member_that_comes_back_in_time_takes_its_work_up():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.leave("b", 10.0)
    rounds.join("b", "qqp", 0.0)
    assert rounds.advance(20.0) is None
    rounds.count(claim("b", "qqp"))
    assert rounds.advance(21.0) is Step.CLOSED


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


# What it says it waits for.


def test_the_time_left_is_that_of_those_who_have_not_reported():
    rounds = opened(task_deadline_s={"qqp": 300.0})
    assert waiting_for(rounds.view, 1.0) == "2 of 2 updates: a (sst2), b (qqp), 299 s left"
    rounds.count(claim("b", "qqp"))
    assert waiting_for(rounds.view, 1.0) == "1 of 2 updates: a (sst2), 99 s left"


def test_the_time_left_is_no_more_than_a_member_that_left_is_waited_for():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.leave("b", 10.0)
    assert waiting_for(rounds.view, 11.0) == "1 of 2 updates: b (qqp), 4 s left"


def test_a_moving_upload_has_time_left_past_the_deadline():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.progress("b", 98.0)
    assert waiting_for(rounds.view, 101.0) == "1 of 2 updates: b (qqp), 7 s left"  # 98 + 10 - 101


def test_of_more_clients_than_are_needed_only_as_many_updates_are_waited_for_as_are_enough():
    rounds = over_selected(size=2, extra=1)
    assert waiting_for(rounds.view, 0.0) == "2 of 2 updates: a (sst2), b (sst2), c (sst2), 100 s left"
    rounds.count(claim("b"))
    assert waiting_for(rounds.view, 0.0) == "1 of 2 updates: a (sst2), c (sst2), 100 s left"


def test_a_task_that_has_enough_is_not_waited_for():
    clients = {"a": "sst2", "b": "sst2", "c": "qqp"}
    rounds = opened_with(clients, cohort="over_select", cohort_size=1, cohort_extra=2)
    rounds.count(claim("a"))
    assert waiting_for(rounds.view, 0.0) == "1 of 2 updates: c (qqp), 100 s left"


def test_an_asynchronous_round_waits_for_no_more_updates_than_it_has_clients():
    rounds = opened_async("abc", buffer_size=10)
    rounds.count(delta("b"))
    assert waiting_for(rounds.view, 0.0) == "2 of 3 updates: a (sst2), c (sst2), 100 s left"


def test_of_many_that_are_waited_for_the_first_are_named():
    rounds = opened_with(dict.fromkeys("abcdefg", "sst2"), min_clients={"sst2": 1})
    names = ", ".join(f"{name} (sst2)" for name in "abcde")
    assert waiting_for(rounds.view, 0.0) == f"7 of 7 updates: {names} and 2 more, 100 s left"


def test_an_evaluation_that_nobody_is_there_for_says_how_long_it_waits():
    rounds = opened(num_rounds=1)
    finish_round(rounds, 1)
    rounds.leave("a", 1.0)
    rounds.leave("b", 1.0)
    assert waiting_for(rounds.view, 1.0) == "1 more sst2 client, 1 more qqp client, 30 s left"


# Deadlines of single tasks.


def test_a_task_with_a_shorter_deadline_is_not_waited_for_longer():
    rounds = opened(task_deadline_s={"qqp": 40.0})
    rounds.count(claim("a"))
    assert deadline_for(rounds.view, "b") == 40.0
    assert rounds.next_wakeup(1.0) == 39.0
    assert rounds.advance(39.9) is None
    assert rounds.advance(40.0) is Step.CLOSED


def test_a_task_with_a_longer_deadline_keeps_the_round_open_past_the_others():
    rounds = opened(task_deadline_s={"qqp": 300.0})
    rounds.count(claim("a"))
    assert (deadline_for(rounds.view, "a"), deadline_for(rounds.view, "b"), deadline(rounds.view)) == (
        100.0,
        300.0,
        300.0,
    )
    assert rounds.advance(299.9) is None
    assert rounds.advance(300.0) is Step.CLOSED


def test_a_long_deadline_of_a_task_that_has_reported_keeps_nobody_waiting():
    rounds = opened(task_deadline_s={"qqp": 300.0})
    rounds.count(claim("b", "qqp"))
    assert rounds.advance(99.9) is None
    assert rounds.advance(100.0) is Step.CLOSED


def test_an_update_past_its_tasks_deadline_counts_while_the_round_is_open():
    rounds = opened(task_deadline_s={"sst2": 40.0})
    assert rounds.advance(50.0) is None
    rounds.count(claim("a"))
    assert rounds.cohort["a"].reported


def test_a_moving_upload_of_a_task_with_its_own_deadline_has_twice_that_at_most():
    rounds = opened(task_deadline_s={"qqp": 40.0})
    rounds.count(claim("a"))
    for second in range(35, 80, 5):
        rounds.progress("b", float(second))
        assert rounds.advance(second + 0.1) is None
    assert rounds.next_wakeup(79.0) == 1.0
    assert rounds.advance(80.0) is Step.CLOSED


def test_a_client_outside_the_cohort_hears_the_rounds_own_deadline():
    rounds = opened(task_deadline_s={"qqp": 300.0})
    assert deadline_for(rounds.view, "late") == 300.0


# A quorum that is missing at the deadline.


def test_what_is_missing_of_a_quorum_is_said_by_task():
    rounds = opened_with({"a": "sst2", "b": "sst2", "c": "qqp"}, min_clients={"sst2": 2, "qqp": 1})
    assert missing_quorum(rounds.view) == {"sst2": 2, "qqp": 1}
    rounds.count(claim("a"))
    rounds.count(claim("c", "qqp"))
    assert missing_quorum(rounds.view) == {"sst2": 1}


def test_by_default_a_round_without_its_quorum_commits_what_is_there():
    rounds = opened_with({"a": "sst2", "b": "sst2"}, min_clients={"sst2": 2})
    rounds.count(claim("a"))
    assert rounds.advance(100.0) is Step.CLOSED


def test_a_round_without_its_quorum_fails_where_it_is_to_and_the_next_one_follows():
    rounds = opened(on_missing_quorum="fail")
    rounds.count(claim("a"))
    assert rounds.advance(99.9) is None
    assert rounds.advance(100.0) is Step.FAILED
    assert (rounds.phase, missing_quorum(rounds.view)) == (Phase.AGGREGATING, {"qqp": 1})
    rounds.committed(100.0)
    assert (rounds.phase, rounds.round) == (Phase.WAITING, 2)


def test_a_round_with_its_quorum_does_not_fail_though_others_are_missing():
    rounds = opened_with({"a": "sst2", "b": "sst2"}, min_clients={"sst2": 1}, on_missing_quorum="fail")
    rounds.count(claim("a"))
    assert rounds.advance(100.0) is Step.CLOSED


def test_an_evaluation_never_fails_nor_is_it_extended():
    for policy in ("fail", "extend"):
        rounds = opened(num_rounds=1, on_missing_quorum=policy)
        finish_round(rounds, 1)
        rounds.advance(1.0)
        rounds.count(claim("a", "sst2", 2, "u2", "metrics"))
        rounds.leave("b", 50.0)
        assert rounds.advance(54.9) is None
        assert rounds.advance(55.0) is Step.CLOSED


def test_a_missing_quorum_extends_the_deadline_by_its_own_length_until_it_is_there():
    rounds = opened(on_missing_quorum="extend", max_extensions=2)
    rounds.count(claim("a"))
    assert rounds.advance(99.9) is None
    assert rounds.advance(100.0) is Step.EXTENDED
    assert (rounds.phase, deadline(rounds.view), rounds.next_wakeup(100.0)) == (Phase.OPEN, 200.0, 100.0)
    rounds.count(claim("b", "qqp"))
    assert rounds.advance(150.0) is Step.CLOSED


def test_a_deadline_is_extended_so_often_and_then_what_is_there_commits():
    rounds = opened(on_missing_quorum="extend", max_extensions=2)
    rounds.count(claim("a"))
    assert [rounds.advance(100.0 * n) for n in (1, 2)] == [Step.EXTENDED, Step.EXTENDED]
    assert rounds.advance(299.9) is None
    assert rounds.advance(300.0) is Step.CLOSED


def test_the_next_round_begins_with_its_own_deadline_and_extensions():
    rounds = opened(on_missing_quorum="extend", max_extensions=1)
    rounds.count(claim("a"))
    assert rounds.advance(100.0) is Step.EXTENDED
    commit(rounds, now=200.0)
    assert deadline(rounds.view) == 300.0
    rounds.count(claim("a", round_=2, update_id="u2"))
    assert rounds.advance(300.0) is Step.EXTENDED


def test_after_its_extensions_a_round_nobody_reported_in_is_abandoned():
    rounds = opened(on_missing_quorum="extend", max_extensions=1)
    assert rounds.advance(100.0) is Step.EXTENDED
    assert rounds.advance(200.0) is Step.ABANDONED
    assert rounds.advance(200.0) is Step.OPENED
    assert deadline(rounds.view) == 300.0


def test_a_member_that_left_can_come_back_for_a_missing_quorum_to_the_end_of_the_last_extension():
    rounds = opened(on_missing_quorum="extend", max_extensions=1)
    rounds.count(claim("a"))
    rounds.leave("b", 10.0)
    assert rounds.advance(20.0) is None  # its grace is over, but its update is needed
    assert rounds.advance(100.0) is Step.EXTENDED
    assert rounds.advance(100.0) is None
    rounds.join("b", "qqp", 190.0)
    rounds.count(claim("b", "qqp"))
    assert rounds.advance(195.0) is Step.CLOSED
    assert missing_quorum(rounds.view) == {}


def test_a_member_that_left_is_not_waited_for_where_the_quorum_is_there_without_it():
    rounds = opened_with({"a": "sst2", "b": "sst2"}, min_clients={"sst2": 1}, on_missing_quorum="extend")
    rounds.count(claim("a"))
    rounds.leave("b", 10.0)
    assert rounds.advance(15.0) is Step.CLOSED


def test_a_moving_upload_is_waited_for_before_the_deadline_is_extended():
    rounds = opened(on_missing_quorum="extend", max_extensions=1)
    rounds.count(claim("a"))
    rounds.progress("b", 95.0)
    assert rounds.advance(100.0) is None
    assert rounds.next_wakeup(100.0) == 5.0
    assert rounds.advance(105.0) is Step.EXTENDED


@pytest.mark.parametrize("policy", ["extend", "fail"])
def test_a_client_that_comes_in_mid_round_brings_no_quorum_that_its_cohort_cannot_have(policy):
    """Round 2 opened without qqp, which had been waited for in vain; c comes when it is too late to take part."""
    rounds = opened(num_rounds=9, on_missing_quorum=policy)
    finish_round(rounds, 1)
    rounds.leave("b", 1.0)
    assert rounds.advance(31.0) is Step.OPENED
    rounds.join("c", "qqp", 32.0)
    rounds.count(claim("a", round_=2, update_id="a2"))
    assert missing_quorum(rounds.view) == {}
    assert rounds.advance(33.0) is Step.CLOSED


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


# Asynchronous rounds.


def test_a_stale_update_counts_by_one_plus_its_staleness_to_the_minus_a():
    def discounts(exponent, *staleness):
        rules = round_rules(num_rounds=1, min_clients={}, mode="async", staleness_exponent=exponent)
        return [rules.discount(one) for one in staleness]

    assert discounts(0.5, 0, 3, 8) == pytest.approx([1, 1 / 2, 1 / 3])
    assert discounts(1.0, 0, 1, 3) == [1, 0.5, 0.25]
    assert discounts(0.0, 9) == [1]


def test_an_asynchronous_round_closes_at_its_number_of_updates_though_others_are_at_work():
    rounds = opened_async()
    rounds.count(delta("c"))
    assert rounds.advance(1.0) is None
    assert waiting_for(rounds.view, 1.0) == "1 of 2 updates: a (sst2), b (sst2), 99 s left"
    rounds.count(delta("a"))
    assert rounds.advance(2.0) is Step.CLOSED


def test_an_update_from_the_last_rounds_model_counts_in_this_one_with_its_staleness():
    rounds = opened_async()
    rounds.count(delta("a"))
    rounds.count(delta("b"))
    commit(rounds)
    rounds.count(delta("c"))
    assert rounds.counted_in(delta("c")) == 2
    assert rounds.view.staleness(delta("c")) == 1


def test_an_update_is_too_stale_when_it_started_more_commits_ago_than_are_allowed():
    rounds = opened_async(buffer_size=1, max_staleness=1)
    for round_ in (1, 2):
        assert rounds.view.oldest_base_round == 1
        rounds.check(delta("b"))
        rounds.count(delta("a", round_, f"a{round_}"))
        commit(rounds)
    assert rounds.view.oldest_base_round == 2
    with pytest.raises(StaleRoundError, match=r"for round 1, but the run is at round 3 \(open\)"):
        rounds.check(delta("b", 1))
    rounds.check(delta("b", 2))


def test_an_update_from_a_model_that_is_not_there_yet_is_refused():
    with pytest.raises(StaleRoundError, match="for round 2, but the run is at round 1"):
        opened_async().check(delta("a", 2))


def test_one_client_counts_once_in_an_asynchronous_commit():
    rounds = opened_async()
    rounds.count(delta("a"))
    with pytest.raises(StaleRoundError, match="another update of client 'a' already counts in round 1"):
        rounds.count(delta("a", update_id="u2"))
    assert rounds.advance(1.0) is None


def test_an_update_that_counted_in_an_asynchronous_round_does_not_count_in_a_later_one():
    """Neither the client's last, nor one before that, though both started recently enough."""
    rounds = opened_async(buffer_size=1)
    for round_, update_id in ((1, "u1"), (2, "u2")):
        rounds.count(delta("a", round_, update_id))
        commit(rounds)
    for repeated in (delta("a", 2, "u2"), delta("a", 1, "u1")):
        with pytest.raises(StaleRoundError, match="already counts in round 2"):
            rounds.count(repeated)
    rounds.count(delta("a", 2, "u3"))  # from the model that the client got after its last one counted


def test_what_arrives_between_two_asynchronous_rounds_may_count_in_the_next():
    rounds = opened_async(buffer_size=1)
    rounds.count(delta("a"))
    assert rounds.advance(1.0) is Step.CLOSED
    rounds.check(delta("b", 1))
    for base_round in (0, 2):  # the next model goes out when the commit is dealt with
        with pytest.raises(StaleRoundError, match=rf"for round {base_round}, but .* \(aggregating\)"):
            rounds.check(delta("b", base_round))
    with pytest.raises(StaleRoundError, match="aggregating"):
        rounds.count(delta("b"))
    rounds.committed(1.0)
    rounds.check(delta("b", 1))
    with pytest.raises(InvalidRequestError, match="an asynchronous run expects a delta, got parameters"):
        rounds.check(claim("b"))


def test_fewer_clients_than_the_buffer_holds_commit_when_all_of_them_have_reported():
    rounds = opened_async("ab", buffer_size=10)
    rounds.count(delta("a"))
    assert rounds.advance(1.0) is None
    rounds.count(delta("b"))
    assert rounds.advance(1.0) is Step.CLOSED


def test_an_asynchronous_round_closes_at_its_deadline_with_what_is_there():
    rounds = opened_async()
    rounds.count(delta("a"))
    assert rounds.advance(99.9) is None
    assert rounds.advance(100.0) is Step.CLOSED


def test_a_client_that_comes_into_an_open_asynchronous_round_takes_part_at_once():
    rounds = opened_async("a")
    rounds.join("z", "sst2", 1.0)
    rounds.count(delta("a"))
    rounds.count(delta("z"))
    assert list(rounds.cohort) == ["a", "z"]
    assert rounds.advance(2.0) is Step.CLOSED


def test_an_asynchronous_round_with_its_number_of_updates_does_not_fail_whoever_they_came_from():
    rounds = opened_async(buffer_size=1, min_clients={"sst2": 2}, on_missing_quorum="fail")
    rounds.count(delta("a"))
    assert rounds.advance(1.0) is Step.CLOSED


def test_an_asynchronous_round_without_its_quorum_at_its_deadline_fails_where_it_is_to():
    rounds = opened_async(buffer_size=3, min_clients={"sst2": 2}, on_missing_quorum="fail")
    rounds.count(delta("a"))
    assert rounds.advance(100.0) is Step.FAILED


def test_an_asynchronous_round_is_never_extended():
    rounds = opened_async(buffer_size=3, min_clients={"sst2": 2}, on_missing_quorum="extend")
    rounds.count(delta("a"))
    assert rounds.advance(100.0) is Step.CLOSED


def test_the_evaluation_of_an_asynchronous_run_is_of_its_last_model_alone():
    rounds = opened_async("ab", buffer_size=1, num_rounds=1)
    rounds.count(delta("a"))
    commit(rounds)
    assert (rounds.purpose, rounds.view.is_asynchronous, rounds.view.oldest_base_round) == ("evaluate", False, 2)
    with pytest.raises(StaleRoundError, match="for round 1, but the run is at round 2"):
        rounds.check(delta("b", 1))
    rounds.count(claim("a", "sst2", 2, "u2", "metrics"))
    assert rounds.advance(2.0) is None  # one is enough to train, not to measure
    rounds.count(claim("b", "sst2", 2, "u2", "metrics"))
    assert rounds.advance(2.0) is Step.CLOSED


def test_of_a_synchronous_run_only_the_open_rounds_own_model_will_do():
    rounds = opened()
    assert rounds.view.oldest_base_round == 1
    rounds.count(claim("a"))
    rounds.count(claim("b", "qqp"))
    rounds.advance(1.0)
    assert rounds.view.oldest_base_round == 2
    rounds.committed(1.0)
    assert rounds.view.oldest_base_round == 2


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


# After a crash.


def reopened(claims=(), cohort=None, counted=None, **rules) -> RoundEngine:
    """Round 3 of 9, taken up at second 1000, by default with the cohort a (sst2), b (qqp)."""
    defaults = {"min_clients": {"sst2": 1, "qqp": 1}, "deadline_s": 100.0, "quorum_timeout_s": 30.0}
    rounds = RoundEngine(round_rules(num_rounds=9, **(defaults | rules)), 1000.0, 3, counted)
    rounds.reopen(cohort or {"a": "sst2", "b": "qqp"}, claims, 1000.0)
    return rounds


def test_a_round_taken_up_again_has_its_cohort_and_what_was_acknowledged():
    rounds = reopened([claim("a", round_=3)])
    assert (rounds.phase, rounds.round, deadline(rounds.view)) == (Phase.OPEN, 3, 1100.0)
    assert [member.reported for member in rounds.cohort.values()] == [True, False]
    assert rounds.counted_in(claim("a", round_=3)) == 3
    with pytest.raises(StaleRoundError, match="another update of client 'a' already counts in round 3"):
        rounds.count(claim("a", round_=3, update_id="u2"))
    rounds.join("b", "qqp", 1001.0)
    rounds.count(claim("b", "qqp", 3))
    assert rounds.advance(1002.0) is Step.CLOSED


def test_a_round_taken_up_with_all_its_updates_closes_at_once():
    assert reopened([claim("a", round_=3), claim("b", "qqp", 3)]).advance(1000.0) is Step.CLOSED


def test_everybody_gets_the_time_to_come_back_that_a_quorum_is_waited_for():
    rounds = reopened([claim("a", round_=3)])
    assert rounds.next_wakeup(1000.0) == 30.0
    assert rounds.advance(1029.9) is None
    assert rounds.advance(1030.0) is Step.CLOSED


def test_who_is_back_after_a_crash_has_until_the_deadline_which_begins_anew():
    rounds = reopened([claim("a", round_=3)])
    rounds.join("b", "qqp", 1010.0)
    assert rounds.advance(1099.9) is None
    assert rounds.advance(1100.0) is Step.CLOSED


def test_a_round_that_nobody_comes_back_to_is_abandoned():
    rounds = reopened()
    assert rounds.advance(1030.0) is Step.ABANDONED
    assert (rounds.phase, rounds.round) == (Phase.WAITING, 3)


def test_updates_counted_before_the_crash_are_still_known():
    rounds = reopened(counted={"a": ("old", 2)})
    assert rounds.counted_in(claim("a", round_=2, update_id="old")) == 2


def test_a_task_that_a_round_was_opened_without_is_not_missed_after_the_crash():
    rounds = reopened([claim("a", round_=3)], cohort={"a": "sst2"}, on_missing_quorum="fail")
    assert missing_quorum(rounds.view) == {}
    assert rounds.advance(1000.0) is Step.CLOSED
    rounds.committed(1000.0)
    rounds.join("a", "sst2", 1001.0)
    assert rounds.advance(1001.0) is Step.OPENED  # nor is it waited for in the next


def test_who_came_into_an_asynchronous_round_and_counted_is_in_it_after_the_crash():
    rounds = reopened(
        [delta("z", 2, "z1", "qqp")], cohort={"a": "sst2"}, mode="async", buffer_size=2, counted={"z": ("z0", 1)}
    )
    assert list(rounds.cohort) == ["a", "z"]
    assert rounds.cohort["z"].answer == delta("z", 2, "z1", "qqp")
    assert rounds.counted_in(delta("z", 2, "z1", "qqp")) == 3
    rounds.join("a", "sst2", 1001.0)
    rounds.count(delta("a", 3))
    assert rounds.advance(1002.0) is Step.CLOSED


def test_an_evaluation_nobody_was_there_for_ends_after_the_crash():
    rounds = RoundEngine(round_rules(num_rounds=1, min_clients={"sst2": 1}), 0.0, 2)
    rounds.reopen({}, [], 0.0)
    assert rounds.advance(0.0) is Step.CLOSED


# Whatever happens.

CLIENTS, HOURS = "abcd", 3 * 3600.0
TASKS = {"sst2": 100.0, "qqp": 40.0, "stsb": 250.0}
any_cohort = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"cohort": st.just("fraction"), "cohort_fraction": st.sampled_from([0.1, 0.5, 1.0])}),
    st.fixed_dictionaries(
        {"cohort": st.just("over_select"), "cohort_size": st.integers(1, 3), "cohort_extra": st.integers(0, 2)}
    ),
)
any_asynchronous = st.fixed_dictionaries(
    {"mode": st.just("async"), "buffer_size": st.integers(1, 5), "max_staleness": st.integers(0, 3)}
)
any_rules = st.builds(
    lambda cohort_or_mode, **rules: round_rules(**rules, **cohort_or_mode),
    st.one_of(any_cohort, any_asynchronous),
    num_rounds=st.integers(1, 4),
    min_clients=st.fixed_dictionaries({"sst2": st.integers(0, 2), "qqp": st.integers(0, 2)}),
    deadline_s=st.just(TASKS["sst2"]),
    task_deadline_s=st.sampled_from([{}, {task: TASKS[task] for task in ("qqp", "stsb")}]),
    quorum_timeout_s=st.sampled_from([30.0, 500.0]),
    rejoin_grace_s=st.sampled_from([0.0, 5.0]),
    transfer_timeout_s=st.just(10.0),
    on_missing_quorum=st.sampled_from(["commit", "extend", "fail"]),
    max_extensions=st.integers(1, 3),
    seed=st.integers(0, 3),
)
clients, tasks = st.sampled_from(CLIENTS), st.sampled_from(list(TASKS))


@settings(max_examples=200)
@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from([-1, -1, 0, 1, 2])), min_size=5, max_size=40
    ),
)
def test_no_update_counts_twice_in_an_asynchronous_run_however_late_it_comes_again(buffer_size, max_staleness, sent):
    """Each is a client's new update from a model some rounds old, or one of its earlier ones."""
    rounds = opened_async("ab", buffer_size, max_staleness=max_staleness, num_rounds=100)
    made: dict[str, list[Update]] = {"a": [], "b": []}
    counted = []
    for number, (client_id, age, again) in enumerate(sent):
        if again == -1 or not made[client_id]:
            made[client_id].append(delta(client_id, rounds.round - age, f"u{number}"))
        update = made[client_id][-1 - max(0, again) % len(made[client_id])]
        with contextlib.suppress(StaleRoundError):
            rounds.count(update)
            counted.append(update.update_id)
        if rounds.advance(1.0) is Step.CLOSED:
            rounds.committed(1.0)
            assert rounds.advance(1.0) is Step.OPENED
    assert len(set(counted)) == len(counted)


class AnyRun(RuleBasedStateMachine):
    """A run under any rules, with clients that come, go and repeat themselves, and a server that crashes."""

    @initialize(rules=any_rules)
    def begin(self, rules):
        self.rules, self.now = rules, 50.0
        self.engine = RoundEngine(rules, self.now)
        self.sent: list[Update] = []
        self.counted: dict[str, tuple[Update, int]] = {}  # with its round
        self.acknowledged: list[Update] = []  # of the round in progress
        self.everybody_joins()
        self.advance()

    @rule(client_id=clients, task=tasks)
    def join(self, client_id, task):
        self.engine.join(client_id, task, self.now)

    @rule()
    def everybody_joins(self):
        for number, one in enumerate(CLIENTS):
            self.engine.join(one, list(TASKS)[number % 2], self.now)

    @rule(client_id=clients)
    def leave(self, client_id):
        self.engine.leave(client_id, self.now)

    @rule(client_id=clients)
    def progress(self, client_id):
        self.engine.progress(client_id, self.now)

    @rule(seconds=st.sampled_from([0.1, 4.0, 9.0, 30.0, 90.0, HOURS]))
    def wait(self, seconds):
        self.now += seconds

    @rule(client_id=clients, age=st.sampled_from([0, 0, 0, 1, 2, -1]), kind=st.sampled_from(["delta", "parameters"]))
    def count(self, client_id, age, kind):
        member = self.engine.cohort.get(client_id)
        task = member.task if member else self.engine.view.present.get(client_id, "sst2")
        kind = "metrics" if self.engine.purpose == "evaluate" else kind
        self.sent.append(claim(client_id, task, self.engine.round - age, f"u{len(self.sent)}", kind))
        self._count(self.sent[-1])

    @rule(number=st.integers(1, len(CLIENTS)))
    def many_report(self, number):
        for client_id in CLIENTS[:number]:
            self.count(client_id, 0, "delta")

    @rule(times=st.integers(1, 6))
    def time_goes_by(self, times):
        for _ in range(times):
            self.now += self.engine.next_wakeup(self.now) or 0.0
            self.advance()
            if self.engine.phase is Phase.AGGREGATING:
                self.deal_with_it(stop=False)

    @precondition(lambda self: self.sent)
    @rule(number=st.integers(0, 9))
    def count_again(self, number):
        self._count(self.sent[-1 - number % len(self.sent)])

    def _count(self, update):
        try:
            self.engine.count(update)
        except (StaleRoundError, InvalidRequestError):
            return
        assert update.update_id not in self.counted, "an update counts twice"
        assert self.engine.phase is Phase.OPEN
        assert self.engine.counted_in(update) == self.engine.round
        self.counted[update.update_id] = update, self.engine.round
        self.acknowledged.append(update)

    @rule()
    def advance(self):
        before, present, round_ = self.engine.phase, dict(self.engine.view.present), self.engine.round
        step = self.engine.advance(self.now)
        if step is Step.OPENED:
            assert before is Phase.WAITING
            cohort = {member.client_id: member.task for member in self.engine.cohort.values()}
            assert cohort.items() <= present.items()
            assert not self.acknowledged
            assert set(present) == set(cohort) or self.rules.rounds.cohort != "all"
        if step is Step.ABANDONED:
            assert not self.acknowledged, "an update that counted is forgotten"
        if step in (Step.CLOSED, Step.FAILED):
            assert self.engine.phase is Phase.AGGREGATING
        if step is Step.FAILED:
            assert self.rules.rounds.on_missing_quorum == "fail"
            assert missing_quorum(self.engine.view)
            for update in self.acknowledged:
                del self.counted[update.update_id]  # discarded
        assert self.engine.round == round_

    @precondition(lambda self: self.engine.phase is Phase.AGGREGATING)
    @rule(stop=st.sampled_from([False, False, False, True]))
    def deal_with_it(self, stop):
        self.engine.committed(self.now)
        self.acknowledged = []
        if stop and self.engine.phase is Phase.WAITING:
            self.engine.stop_training()

    @precondition(lambda self: self.engine.phase is Phase.OPEN and self.engine.purpose == "train")
    @rule()
    def crash(self):
        """What is on disk: the cohort as the round opened, what was acknowledged, each client's last update before."""
        engine = self.engine
        joined_later = {one.client_id for one in self.acknowledged} if engine.view.is_asynchronous else set()
        cohort = {one.client_id: one.task for one in engine.cohort.values() if one.client_id not in joined_later}
        before = [(one, round_) for one, round_ in self.counted.values() if one not in self.acknowledged]
        counted = {one.client_id: (one.update_id, round_) for one, round_ in before}
        rules = replace(self.rules, num_rounds=engine.view.last_training_round)
        self.engine = RoundEngine(rules, self.now, engine.round, counted)
        self.engine.reopen(cohort, self.acknowledged, self.now)

    @invariant()
    def what_is_acknowledged_is_kept(self):
        updates = [answer for member in self.engine.cohort.values() for answer in member.answers]
        if self.engine.phase in (Phase.OPEN, Phase.AGGREGATING):
            assert sorted(one.update_id for one in updates) == sorted(one.update_id for one in self.acknowledged)

    @invariant()
    def an_open_round_ends_by_itself(self):
        """With nobody doing anything more, woken when it asks to be, in the time that the rules allow."""
        if self.engine.phase is not Phase.OPEN:
            return
        engine, now = copy.deepcopy(self.engine), self.now
        extensions = self.rules.rounds.max_extensions if self.rules.rounds.on_missing_quorum == "extend" else 0
        latest = max(now, engine.view.opened_at + max(TASKS.values()) * (2 + extensions))
        for _ in range(100):
            if (step := engine.advance(now)) in (Step.CLOSED, Step.FAILED, Step.ABANDONED):
                break
            if step is Step.EXTENDED:
                continue
            wakeup = engine.next_wakeup(now)
            assert wakeup is not None, "it waits for nothing"
            assert wakeup > 0
            assert copy.deepcopy(engine).advance(now + wakeup / 2) is None, "it sleeps over something"
            now += wakeup
        assert engine.phase is not Phase.OPEN
        assert now <= latest

    @invariant()
    def it_says_what_it_waits_for(self):
        waits = self.engine.phase is Phase.OPEN and copy.deepcopy(self.engine).advance(self.now) is None
        assert not waits or " updates: " in waiting_for(self.engine.view, self.now)


TestAnyRun = AnyRun.TestCase
TestAnyRun.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
