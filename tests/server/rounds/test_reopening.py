"""A round that was open when a server ended, resumed by the next one."""

import pytest

from fedmtl_core.errors import StaleRoundError
from fedmtl_server.rounds.completion import missing_quorum
from fedmtl_server.rounds.deadlines import deadline
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.transitions import Phase, Step
from tests.server.rounds.driven import claim, delta, round_rules


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
