"""When an open round closes, whom it waits for until then, and what a missing quorum makes of it."""

import pytest

from fedmtl_server.rounds.completion import missing_quorum
from fedmtl_server.rounds.deadlines import deadline, deadline_for
from fedmtl_server.rounds.transitions import Phase, Step
from tests.server.rounds.driven import claim, commit, finish_round, opened, opened_with


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
