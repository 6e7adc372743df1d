"""The first round waits for the clients that the run is begun with, where it is told to."""

from __future__ import annotations

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.wire.updates import Update
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.transitions import Step
from fedmtl_server.rounds.waiting import waiting_for
from tests.server.rounds.driven import round_rules
from tests.support import WireClient, serving, tiny_model

WAITING, OPENED = pb.ROUND_EVENT_KIND_WAITING, pb.ROUND_EVENT_KIND_OPENED


def engine(*expected: str, round_: int = 1, **rules) -> RoundEngine:
    """At second 0, before the first of its rounds; a quorum is one client of sst2."""
    defaults = {
        "num_rounds": 9,
        "min_clients": {"sst2": 1, "texts": 0},
        "auxiliary": frozenset({"texts"}),
        "quorum_timeout_s": 30.0,
        "expected": frozenset(expected),
        "await_clients_s": 100.0,
    }
    return RoundEngine(round_rules(**(defaults | rules)), 0.0, round_)


def test_the_first_round_waits_for_all_who_are_expected_whatever_its_quorum():
    rounds = engine("a", "b", "t")
    rounds.join("b", "sst2", 1.0)
    assert rounds.advance(1.0) is None
    assert waiting_for(rounds.view, 1.0) == "2 of the configured clients: a, t, 100 s left"
    rounds.join("t", "texts", 2.0)
    assert rounds.advance(2.0) is None
    rounds.join("a", "sst2", 3.0)
    assert rounds.advance(3.0) is Step.OPENED
    assert [*rounds.cohort] == ["a", "b", "t"]
    assert rounds.view.opened_without == []


def test_whoever_is_faster_the_first_cohort_is_the_same():
    cohorts = []
    for order in ("abct", "tcba", "bcta"):
        rounds = engine(*"abct", cohort="fraction", cohort_fraction=0.5)
        for second, client_id in enumerate(order):
            assert rounds.advance(second) is None
            rounds.join(client_id, "texts" if client_id == "t" else "sst2", second)
        assert rounds.advance(5.0) is Step.OPENED
        cohorts.append({member.client_id: member.task for member in rounds.cohort.values()})
    assert cohorts[0] == cohorts[1] == cohorts[2]


def test_the_quorum_is_needed_beside_them():
    rounds = engine("a", min_clients={"sst2": 2, "texts": 0})
    rounds.join("a", "sst2", 0.0)
    assert rounds.advance(0.0) is None
    assert waiting_for(rounds.view, 0.0) == "1 more sst2 client"
    rounds.join("from-elsewhere", "sst2", 1.0)
    assert rounds.advance(1.0) is Step.OPENED


def test_the_wait_is_over_when_nobody_new_has_come_for_so_long():
    rounds = engine("a", "b", "c")
    rounds.join("a", "sst2", 60.0)
    assert rounds.next_wakeup(60.0) == 100.0
    rounds.join("b", "sst2", 150.0)
    rounds.leave("a", 160.0)
    rounds.join("a", "sst2", 200.0)  # prolongs nothing: it has been there
    assert rounds.next_wakeup(200.0) == 50.0
    assert rounds.advance(249.0) is None
    assert rounds.advance(250.0) is Step.OPENED
    assert [*rounds.cohort] == ["a", "b"]
    assert rounds.view.opened_without == ["c"]


def test_with_nobody_there_it_goes_on_waiting_for_the_quorum():
    rounds = engine("a")
    assert rounds.advance(100.0) is None
    assert rounds.next_wakeup(100.0) is None
    assert waiting_for(rounds.view, 100.0) == "1 more sst2 client"
    rounds.join("b", "sst2", 500.0)
    assert rounds.advance(500.0) is Step.OPENED


def test_no_later_round_waits_for_them():
    rounds = engine("a", "b")
    rounds.join("a", "sst2", 0.0)
    rounds.join("b", "sst2", 0.0)
    assert rounds.advance(0.0) is Step.OPENED
    rounds.leave("b", 1.0)
    rounds.count(Update("a", "sst2", 1, "u", "parameters", num_examples=1))
    assert rounds.advance(20.0) is Step.CLOSED
    rounds.committed(20.0)
    assert rounds.advance(20.0) is Step.OPENED
    assert rounds.view.opened_without == []


def test_the_first_round_of_a_server_that_takes_the_run_up_waits_too():
    rounds = engine("a", "b", round_=4)
    rounds.join("a", "sst2", 0.0)
    assert rounds.advance(50.0) is None  # though the time for a quorum is over
    assert waiting_for(rounds.view, 50.0) == "1 of the configured clients: b, 50 s left"
    rounds.join("b", "sst2", 60.0)
    assert rounds.advance(60.0) is Step.OPENED


def test_a_round_that_is_taken_up_keeps_its_cohort_and_the_next_one_has_everybody():
    rounds = engine("a", "b", round_=4)
    rounds.reopen({"a": "sst2"}, [], 0.0)
    rounds.join("a", "sst2", 1.0)
    rounds.count(Update("a", "sst2", 4, "u", "parameters", num_examples=1))
    assert rounds.advance(2.0) is Step.CLOSED
    rounds.committed(2.0)
    assert rounds.advance(2.0) is None
    rounds.join("b", "sst2", 3.0)
    assert rounds.advance(3.0) is Step.OPENED
    assert [*rounds.cohort] == ["a", "b"]


async def test_a_server_waits_for_its_configurations_clients_if_it_says_so_and_otherwise_for_the_quorum(tmp_path):
    sections = {"clients": [{"client_id": name, "task": "sst2"} for name in "ab"]}
    found = []
    for number, rounds in enumerate([{}, {"await_clients_s": 0}, {"await_clients_s": 7.5}]):
        async with serving(tmp_path / str(number), tiny_model("sst2"), sections=sections, **rounds) as server:
            found.append((server.federation.rules.expected, server.federation.rules.rounds.await_clients_s))
    assert found == [(frozenset(), None), (frozenset(), 0.0), (frozenset("ab"), 7.5)]


async def test_over_the_wire_the_first_round_has_all_expected_clients_and_who_waits_is_told_of_what(tmp_path):
    sections = {"clients": [{"client_id": name, "task": "sst2"} for name in "abc"]}
    rounds = {"await_clients_s": 60.0, "report_interval_s": 0.05}
    async with serving(tmp_path, tiny_model("sst2"), sections=sections, **rounds) as server:
        async with (
            WireClient(server, "a", "sst2") as a,
            WireClient(server, "b", "sst2") as b,
            WireClient(server, "c", "sst2") as c,
        ):
            first = await a.watch()
            assert first.waiting_for.startswith("2 of the configured clients: b, c, ")
            await b.watch()
            told = await a.until(WAITING)
            assert told.waiting_for.startswith("1 of the configured clients: c, ")
            await c.watch()
            assert (await a.until(OPENED)).cohort_size == 3


async def test_a_client_whose_other_task_lacks_a_client_is_told_why_it_does_not_count_for_it(tmp_path):
    async with serving(tmp_path, tiny_model("qqp", "sst2")) as server:
        async with WireClient(server, "x", "sst2", tasks=["sst2", "qqp"]) as x, WireClient(server, "y", "sst2") as y:
            told = [(await client.watch()).waiting_for for client in (x, y)]
            told.append((await y.stub.GetStatus(pb.GetStatusRequest())).waiting_for)
    assert told == ["1 more qqp client (x has it too, but has chosen sst2)"] * 3
