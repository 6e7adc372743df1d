"""The round's state machine, driven by hand."""

import pytest

from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_server.rounds import Phase, RoundEngine, RoundRules, Step, UpdateClaim


def engine(num_rounds=2, now=0.0, **rules) -> RoundEngine:
    defaults = {
        "min_clients": {"sst2": 1, "qqp": 1},
        "deadline_s": 100.0,
        "quorum_timeout_s": 30.0,
        "rejoin_grace_s": 5.0,
        "transfer_timeout_s": 10.0,
    }
    return RoundEngine(RoundRules(num_rounds=num_rounds, **(defaults | rules)), now)


def claim(client_id="a", task="sst2", round_=1, update_id="u1", kind="parameters") -> UpdateClaim:
    return UpdateClaim(client_id, task, round_, update_id, kind, 1, 0, {}, {})


def opened(**rules) -> RoundEngine:
    """Round 1, open since second 0 with the cohort a (sst2), b (qqp)."""
    rounds = engine(**rules)
    rounds.join("b", "qqp", 0.0)
    rounds.join("a", "sst2", 0.0)
    assert rounds.advance(0.0) is Step.OPENED
    return rounds


def test_a_round_opens_when_every_task_has_its_quorum():
    rounds = engine(min_clients={"sst2": 2, "qqp": 1})
    rounds.join("a", "sst2", 0.0)
    assert rounds.advance(0.0) is None
    assert rounds.waiting_for(0.0) == "1 more sst2 client, 1 more qqp client"
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
    assert rounds.waiting_for(1.0) == "1 of 2 updates: b (qqp), 99 s left"
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


def test_after_a_time_without_anybody_all_get_the_time_to_come_back():
    rounds = opened(num_rounds=9)
    _finish_round(rounds, 1)
    rounds.leave("a", 2.0)
    rounds.leave("b", 2.0)
    rounds.join("b", "qqp", 500.0)
    assert rounds.advance(501.0) is None
    rounds.join("a", "sst2", 510.0)
    assert rounds.advance(510.0) is Step.OPENED


def test_a_run_whose_training_is_done_ends_though_nobody_is_left_to_evaluate_it():
    rounds = opened(num_rounds=1)
    _finish_round(rounds, 1)
    rounds.leave("a", 1.0)
    rounds.leave("b", 1.0)
    assert rounds.next_wakeup(1.0) == 30.0
    assert rounds.advance(31.0) is Step.OPENED
    assert rounds.advance(31.0) is Step.CLOSED
    rounds.committed(31.0)
    assert rounds.phase is Phase.FINISHED


def test_an_evaluation_nobody_answers_ends_the_run_at_its_deadline():
    rounds = opened(num_rounds=1)
    _finish_round(rounds, 1)
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
    _finish_round(rounds, 1)
    assert rounds.advance(1.0) is Step.OPENED
    assert (rounds.round, rounds.purpose) == (2, "evaluate")
    with pytest.raises(InvalidRequestError, match="round 2 expects metrics alone, got parameters"):
        rounds.check(claim(round_=2))


def test_a_run_is_its_rounds_and_an_evaluation():
    rounds = opened(num_rounds=2)
    for round_ in (1, 2):
        _finish_round(rounds, round_)
        assert rounds.advance(float(round_)) is Step.OPENED
    _finish_round(rounds, 3, kind="metrics")
    assert rounds.phase is Phase.FINISHED
    assert rounds.advance(1e9) is None
    assert rounds.next_wakeup(0.0) is None
    assert rounds.waiting_for(0.0) == ""


def test_a_client_may_come_for_the_first_time_in_any_round():
    rounds = opened()
    rounds.join("late", "sst2", 0.0)
    _finish_round(rounds, 1)
    rounds.advance(1.0)
    assert list(rounds.cohort) == ["a", "b", "late"]


def test_a_later_round_goes_on_without_a_quorum_after_its_timeout():
    rounds = opened(num_rounds=9)
    rounds.leave("b", 0.0)
    rounds.count(claim("a"))
    assert rounds.advance(5.0) is Step.CLOSED
    rounds.committed(5.0)
    assert rounds.advance(5.0) is None
    assert rounds.waiting_for(6.0) == "1 more qqp client, 29 s left"
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
    _finish_round(rounds, 1)
    rounds.leave("a", 1.0)
    rounds.leave("b", 1.0)
    assert rounds.advance(1e6) is None
    assert rounds.next_wakeup(1e6) is None
    assert rounds.waiting_for(1e6) == "1 more sst2 client, 1 more qqp client"


def _finish_round(rounds: RoundEngine, round_: int, kind: str = "parameters") -> None:
    rounds.count(claim("a", "sst2", round_, f"a{round_}", kind))
    rounds.count(claim("b", "qqp", round_, f"b{round_}", kind))
    assert rounds.advance(1.0) is Step.CLOSED
    rounds.committed(1.0)
