"""Rounds of several exchanges, whose answers the engine knows nothing of but whom they come from and which round's."""

from dataclasses import dataclass

import pytest

from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_server.rounds.completion import missing_quorum
from fedmtl_server.rounds.deadlines import deadline, deadline_for
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.exchanges import TRAIN, Exchange, everybody
from fedmtl_server.rounds.transitions import Phase, Step
from fedmtl_server.rounds.waiting import waiting_for
from tests.server.rounds.driven import claim, round_rules

KEYS = Exchange("keys", frozenset({"key"}), "a public key", everybody, deadline_s=20.0)
TASKS = {"a": "sst2", "b": "sst2", "c": "qqp"}


@dataclass(frozen=True)
class Key:
    """An answer that is bytes to everybody but the clients."""

    client_id: str
    base_round: int = 1
    update_id: str = "k1"
    data: bytes = b"\x00public"
    kind: str = "key"
    next_task: str = ""

    @property
    def task(self) -> str:
        return TASKS.get(self.client_id, "sst2")


def update(client_id, round_=1):
    return claim(client_id, TASKS[client_id], round_)


def opened(exchanges=(KEYS, TRAIN), **rules) -> RoundEngine:
    """Round 1, open since second 0 with the cohort a, b (sst2), c (qqp)."""
    defaults = {"num_rounds": 2, "min_clients": {"sst2": 1, "qqp": 1}, "deadline_s": 100.0, "rejoin_grace_s": 5.0}
    rounds = RoundEngine(round_rules(**(defaults | rules)), 0.0, exchanges=exchanges)
    for client_id, task in TASKS.items():
        rounds.join(client_id, task, 0.0)
    assert rounds.advance(0.0) is Step.OPENED
    return rounds


def with_keys_of(*client_ids, now=10.0, **rules) -> RoundEngine:
    """Round 1 in its second exchange, with the keys of these clients."""
    rounds = opened(**rules)
    for client_id in client_ids:
        rounds.count(Key(client_id))
    assert rounds.advance(now) is Step.NEXT_EXCHANGE
    return rounds


def test_a_round_of_two_exchanges_collects_both_answers_and_then_commits():
    rounds = opened()
    for client_id in "ab":
        rounds.count(Key(client_id))
        assert rounds.advance(1.0) is None
    rounds.count(Key("c"))
    assert rounds.advance(2.0) is Step.NEXT_EXCHANGE
    assert (rounds.phase, rounds.round, rounds.view.exchange.name) == (Phase.OPEN, 1, "train")
    assert not any(member.reported for member in rounds.cohort.values())
    for client_id in "abc":
        assert rounds.advance(3.0) is None
        rounds.count(update(client_id))
    assert rounds.advance(4.0) is Step.CLOSED
    assert [member.answers for member in rounds.cohort.values()] == [[Key(one), update(one)] for one in "abc"]
    rounds.committed(4.0)
    assert rounds.advance(4.0) is Step.OPENED
    assert (rounds.round, rounds.view.exchange.name) == (2, "keys")
    assert [member.answers for member in rounds.cohort.values()] == [[], [], []]


def test_the_final_evaluation_has_its_own_exchange():
    rounds = with_keys_of(*"abc", num_rounds=1)
    for client_id in "abc":
        rounds.count(update(client_id))
    assert rounds.advance(11.0) is Step.CLOSED
    rounds.committed(11.0)
    assert rounds.advance(11.0) is Step.OPENED
    assert [exchange.name for exchange in rounds.view.exchanges] == ["evaluate"]
    for client_id in "abc":
        rounds.count(claim(client_id, TASKS[client_id], 2, "u2", "metrics"))
    assert rounds.advance(12.0) is Step.CLOSED


def test_members_that_do_not_answer_in_the_first_exchange_are_not_in_the_second():
    rounds = with_keys_of("a", "c", now=20.0)
    assert list(rounds.view.members) == ["a", "c"]
    with pytest.raises(StaleRoundError, match="client 'b' has not answered in every earlier exchange of round 1"):
        rounds.check(update("b"))
    rounds.join("b", "sst2", 21.0)  # nor does it come back in by connecting again
    assert list(rounds.view.members) == ["a", "c"]
    for client_id in "ac":
        rounds.count(update(client_id))
    assert rounds.advance(22.0) is Step.CLOSED
    assert list(rounds.cohort) == ["a", "c", "b"]  # though it was asked, and is missing in the report
    assert [member.reported for member in rounds.cohort.values()] == [True, True, False]
    rounds.committed(22.0)
    assert rounds.advance(22.0) is Step.OPENED
    assert list(rounds.cohort) == ["a", "b", "c"]


def test_each_exchange_takes_its_own_kind_of_answer():
    rounds = opened()
    with pytest.raises(InvalidRequestError, match="round 1 expects a public key, got parameters"):
        rounds.check(update("a"))
    rounds = with_keys_of(*"abc")
    with pytest.raises(InvalidRequestError, match="round 1 expects parameters or a delta, got key"):
        rounds.check(Key("a", update_id="k2"))


def test_an_answer_counts_once_however_often_it_comes_also_in_a_later_exchange():
    rounds = opened()
    rounds.count(Key("a"))
    assert rounds.counted_in(Key("a")) == 1
    with pytest.raises(StaleRoundError, match="another update of client 'a' already counts in round 1"):
        rounds.count(Key("a", update_id="k2"))
    rounds = with_keys_of(*"abc")
    assert rounds.counted_in(Key("a")) == 1
    assert rounds.counted_in(update("a")) is None
    rounds.count(update("a"))
    assert (rounds.counted_in(Key("a")), rounds.counted_in(update("a"))) == (1, 1)
    with pytest.raises(StaleRoundError, match="already counts in round 1"):
        rounds.count(Key("a"))


def test_an_answer_to_another_round_is_refused_in_every_exchange():
    rounds = opened()
    with pytest.raises(StaleRoundError, match="for round 2, but the run is at round 1"):
        rounds.check(Key("a", base_round=2))
    with pytest.raises(StaleRoundError, match="for round 2, but the run is at round 1"):
        with_keys_of(*"abc").check(update("a", 2))


def test_each_exchange_has_its_own_deadline_from_when_it_opened():
    rounds = opened()
    assert (deadline(rounds.view), rounds.next_wakeup(0.0)) == (20.0, 20.0)
    rounds = with_keys_of(*"abc", now=15.0, task_deadline_s={"qqp": 300.0})
    assert (deadline(rounds.view), deadline_for(rounds.view, "a"), rounds.next_wakeup(15.0)) == (315.0, 115.0, 300.0)
    assert (rounds.view.opened_at, rounds.view.exchange_opened_at) == (0.0, 15.0)
    rounds.count(update("c"))
    assert rounds.advance(114.9) is None
    assert rounds.advance(115.0) is Step.CLOSED


def test_an_upload_that_moved_in_one_exchange_keeps_the_next_one_open_no_longer():
    rounds = opened(deadline_s=5.0, transfer_timeout_s=30.0)
    rounds.progress("a", 19.0)
    for client_id in "abc":
        rounds.count(Key(client_id))
    assert rounds.advance(19.0) is Step.NEXT_EXCHANGE
    rounds.count(update("b"))
    rounds.count(update("c"))
    assert rounds.advance(24.0) is Step.CLOSED


def test_a_member_that_left_in_one_exchange_is_waited_for_no_longer_in_the_next():
    rounds = opened()
    for client_id in "abc":
        rounds.count(Key(client_id))
    rounds.leave("a", 1.0)
    assert rounds.advance(2.0) is Step.NEXT_EXCHANGE
    for client_id in "bc":
        rounds.count(update(client_id))
    assert rounds.advance(5.9) is None
    assert rounds.advance(6.0) is Step.CLOSED


def test_an_exchange_says_what_it_waits_for():
    rounds = with_keys_of("a", "c", now=20.0)
    assert waiting_for(rounds.view, 21.0) == "2 of 2 updates: a (sst2), c (qqp), 99 s left"


def test_how_many_answers_are_enough_is_the_exchanges_own():
    two = Exchange("shares", frozenset({"key"}), "shares", lambda rules, num_members: {"sst2": 1, "qqp": 1})
    rounds = opened((two, TRAIN))
    rounds.count(Key("b"))
    assert rounds.advance(1.0) is None
    rounds.count(Key("c"))
    assert rounds.advance(1.0) is Step.NEXT_EXCHANGE
    assert list(rounds.view.members) == ["b", "c"]


def test_a_round_in_whose_second_exchange_nobody_answers_is_abandoned_and_begins_with_the_first():
    rounds = with_keys_of(*"abc")
    assert rounds.advance(110.0) is Step.ABANDONED
    assert (rounds.advance(110.0), rounds.round, rounds.view.exchange.name) == (Step.OPENED, 1, "keys")
    assert rounds.counted_in(Key("a")) is None  # the answers of the abandoned round are forgotten
    rounds.count(Key("a"))


def test_a_round_fails_in_whichever_exchange_its_quorum_is_missing():
    rounds = opened(on_missing_quorum="fail")
    rounds.count(Key("a"))
    assert rounds.advance(20.0) is Step.FAILED
    assert missing_quorum(rounds.view) == {"qqp": 1}
    rounds = with_keys_of(*"abc", on_missing_quorum="fail")
    rounds.count(update("a"))
    assert rounds.advance(110.0) is Step.FAILED


def test_each_exchange_is_extended_by_its_own_length_as_often_as_a_round_may_be():
    rounds = opened(on_missing_quorum="extend", max_extensions=1)
    rounds.count(Key("a"))
    assert (rounds.advance(20.0), deadline(rounds.view)) == (Step.EXTENDED, 40.0)
    assert rounds.advance(40.0) is Step.NEXT_EXCHANGE
    assert deadline(rounds.view) == 140.0


def test_a_round_is_resumed_in_its_first_exchange():
    rules = round_rules(num_rounds=2, min_clients={"sst2": 1, "qqp": 1})
    rounds = RoundEngine(rules, 0.0, exchanges=(KEYS, TRAIN))
    rounds.reopen(TASKS, [Key("a"), Key("b")], 0.0)
    assert [member.reported for member in rounds.cohort.values()] == [True, True, False]
    rounds.count(Key("c"))
    assert rounds.advance(0.0) is Step.NEXT_EXCHANGE


def test_an_asynchronous_round_has_one_exchange():
    with pytest.raises(ValueError, match="one exchange"):
        opened(mode="async")


def test_nobody_outside_sets_a_rounds_phase():
    rounds = opened()
    for one in (rounds.view, rounds):
        with pytest.raises(AttributeError):
            one.phase = Phase.FINISHED
