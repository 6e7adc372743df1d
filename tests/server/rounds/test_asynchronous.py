"""Rounds whose updates may start from earlier rounds' models."""

import pytest

from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_server.rounds.transitions import Step
from fedmtl_server.rounds.waiting import waiting_for
from tests.server.rounds.driven import claim, commit, delta, opened_async


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
