"""Rounds in which clients have data for several tasks: the state machine by hand, and over gRPC."""

from __future__ import annotations

from collections import Counter

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedmtl_core.errors import InvalidRequestError, StaleRoundError
from fedmtl_core.wire.updates import Update
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.task_selection import HighestLoss, TaskLoss
from fedmtl_server.rounds.transitions import Phase, Step
from fedmtl_server.rounds.waiting import waiting_for
from tests.server.rounds.driven import round_rules
from tests.server.test_recovery import history_of
from tests.support import TinyEncoder, WireClient, full_of, model_bytes, serving, tiny_model

BOTH = ("qqp", "sst2")
OPENED, COMMITTED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_COMMITTED


def engine(**rules) -> RoundEngine:
    defaults = {"num_rounds": 9, "min_clients": {"qqp": 1, "sst2": 1}, "rejoin_grace_s": 5.0, "quorum_timeout_s": 30.0}
    return RoundEngine(round_rules(**(defaults | rules)), 0.0)


def claim(client_id, task, round_=1, kind="parameters", next_task="") -> Update:
    return Update(client_id, task, round_, f"{client_id}{round_}", kind, num_examples=1, next_task=next_task)


def tasks_of(rounds) -> dict[str, str]:
    return {member.client_id: member.task for member in rounds.cohort.values()}


def play(rounds, now=0.0, **next_tasks) -> dict[str, str]:
    """Open a round, have everybody report, and end it; the tasks that they had."""
    assert rounds.advance(now) is Step.OPENED
    tasks = tasks_of(rounds)
    for client_id, task in tasks.items():
        kind = "parameters" if rounds.purpose == "train" else "metrics"
        rounds.count(claim(client_id, task, rounds.round, kind, next_tasks.get(client_id, "")))
    assert rounds.advance(now) is Step.CLOSED
    rounds.committed(now)
    return tasks


class TestEngine:
    def test_a_round_opens_once_the_clients_tasks_can_be_chosen_such_that_each_has_its_quorum(self):
        rounds = engine()
        rounds.join("x", "", 0.0, BOTH)
        assert rounds.advance(0.0) is None
        assert waiting_for(rounds.view, 0.0) == "1 more sst2 client (x has it too, but is needed for qqp)"
        rounds.join("y", "qqp", 0.0)
        assert rounds.advance(0.0) is Step.OPENED
        assert tasks_of(rounds) == {"x": "sst2", "y": "qqp"}

    def test_one_client_after_the_other_has_each_task(self):
        rounds = engine(min_clients={"qqp": 0, "sst2": 0})
        rounds.join("x", "", 0.0, BOTH)
        rounds.join("y", "", 0.0, BOTH)
        had = [play(rounds) for _ in range(3)]
        assert had == [{"x": "qqp", "y": "sst2"}, {"x": "sst2", "y": "qqp"}, {"x": "qqp", "y": "sst2"}]

    def test_a_quorum_that_nobody_else_can_meet_binds_a_client_to_its_task(self):
        rounds = engine()
        rounds.join("x", "", 0.0, BOTH)
        rounds.join("y", "sst2", 0.0)
        assert [play(rounds) for _ in range(3)] == 3 * [{"x": "qqp", "y": "sst2"}]

    def test_losses_choose_where_the_configuration_says_so(self):
        rounds = engine(min_clients={"qqp": 0, "sst2": 0}, selection=HighestLoss())
        rounds.note_losses({"qqp": TaskLoss(1.0, 0.9), "sst2": TaskLoss(4.0, 2.0)})
        rounds.join("x", "", 0.0, BOTH)
        rounds.join("y", "", 0.0, BOTH)
        assert play(rounds) == {"x": "qqp", "y": "qqp"}
        rounds.note_losses({"qqp": TaskLoss(1.0, 0.4), "sst2": TaskLoss(4.0, 2.0)})
        assert play(rounds) == {"x": "sst2", "y": "sst2"}

    def test_the_final_model_is_measured_on_every_task_whatever_training_needed_last(self):
        rounds = engine(num_rounds=1, min_clients={"qqp": 0, "sst2": 0}, selection=HighestLoss())
        rounds.note_losses({"qqp": TaskLoss(1.0, 0.9), "sst2": TaskLoss(4.0, 2.0)})
        rounds.join("x", "", 0.0, BOTH)
        rounds.join("y", "", 0.0, BOTH)
        assert play(rounds) == {"x": "qqp", "y": "qqp"}
        assert rounds.purpose == "evaluate"
        assert set(play(rounds).values()) == set(BOTH)

    def test_a_client_keeps_its_task_in_an_open_round_whatever_it_chooses_when_it_comes_back(self):
        rounds = engine(min_clients={"qqp": 0, "sst2": 0})
        rounds.join("x", "qqp", 0.0, BOTH)
        rounds.advance(0.0)
        rounds.leave("x", 1.0)
        rounds.join("x", "sst2", 2.0, BOTH)
        assert tasks_of(rounds) == {"x": "qqp"}
        assert rounds.cohort["x"].expected_until is None
        with pytest.raises(InvalidRequestError, match="takes part in round 1 as 'qqp', got 'sst2'"):
            rounds.count(claim("x", "sst2"))
        rounds.count(claim("x", "qqp"))
        rounds.advance(3.0)
        rounds.committed(3.0)
        assert play(rounds, 3.0) == {"x": "sst2"}

    def test_a_client_that_comes_back_without_the_task_it_has_is_waited_for_as_one_that_left(self):
        rounds = engine(min_clients={"qqp": 0, "sst2": 0, "cola": 0})
        rounds.join("x", "qqp", 0.0, BOTH)
        rounds.advance(0.0)
        rounds.join("x", "", 1.0, ("cola", "sst2"))
        assert rounds.cohort["x"].expected_until == 6.0

    def test_a_client_that_chooses_itself_says_so_with_each_update_and_counts_for_that_quorum_alone(self):
        rounds = engine()
        rounds.join("x", "qqp", 0.0, BOTH)
        rounds.join("y", "sst2", 0.0)
        assert play(rounds, x="sst2") == {"x": "qqp", "y": "sst2"}
        assert rounds.advance(1.0) is None
        assert waiting_for(rounds.view, 1.0) == "1 more qqp client (x has it too, but has chosen sst2), 29 s left"
        rounds.join("z", "qqp", 2.0)
        assert play(rounds, 2.0) == {"x": "sst2", "y": "sst2", "z": "qqp"}
        assert play(rounds, 2.0, x="qqp")["x"] == "sst2"  # without a word its choice stays
        assert play(rounds, 2.0)["x"] == "qqp"

    def test_a_choice_that_is_none_of_the_clients_tasks_is_refused(self):
        rounds = engine()
        rounds.join("x", "", 0.0, BOTH)
        rounds.join("y", "sst2", 0.0)
        rounds.advance(0.0)
        with pytest.raises(
            InvalidRequestError, match=r"next_task: expected one of .* 'x' watches with, qqp, sst2, got"
        ):
            rounds.check(claim("x", "qqp", next_task="cola"))

    def test_a_round_that_is_taken_up_has_the_tasks_that_it_had(self):
        rounds = engine(selection=HighestLoss())
        rounds.reopen({"x": "qqp", "y": "sst2"}, [claim("y", "sst2")], 100.0)
        rounds.join("y", "sst2", 101.0, BOTH)
        rounds.join("x", "sst2", 101.0, BOTH)
        assert tasks_of(rounds) == {"x": "qqp", "y": "sst2"}
        with pytest.raises(InvalidRequestError, match="as 'qqp'"):
            rounds.check(claim("x", "sst2"))
        rounds.count(claim("x", "qqp"))
        assert rounds.advance(102.0) is Step.CLOSED

    def test_a_task_that_was_waited_for_in_vain_is_not_waited_for_and_still_has_its_turn(self):
        rounds = engine()
        rounds.join("x", "", 0.0, BOTH)
        rounds.join("y", "sst2", 0.0)
        play(rounds)
        rounds.leave("y", 1.0)
        assert rounds.advance(29.9) is None
        had = [play(rounds, 30.0), play(rounds, 30.0)]
        assert sorted(one["x"] for one in had) == ["qqp", "sst2"]

    def test_cohorts_are_drawn_from_each_tasks_clients(self):
        rounds = engine(min_clients={"qqp": 1, "sst2": 1}, cohort="fraction", cohort_fraction=0.5)
        for number in range(8):
            rounds.join(f"c{number}", "", 0.0, BOTH)
        rounds.advance(0.0)
        assert Counter(tasks_of(rounds).values()) == {"qqp": 2, "sst2": 2}

    def test_an_asynchronous_update_is_of_the_task_its_client_had_when_it_began(self):
        rounds = engine(min_clients={"qqp": 0, "sst2": 0}, mode="async", buffer_size=1)
        rounds.join("x", "", 0.0, BOTH)
        rounds.join("y", "", 0.0, BOTH)
        rounds.advance(0.0)
        assert tasks_of(rounds) == {"x": "qqp", "y": "sst2"}
        rounds.count(claim("x", "qqp", 1, "delta"))
        rounds.advance(1.0)
        rounds.committed(1.0)
        rounds.advance(1.0)
        assert tasks_of(rounds) == {"x": "sst2", "y": "qqp"}
        rounds.count(claim("y", "sst2", 1, "delta"))
        assert rounds.cohort["y"].task == "sst2"
        with pytest.raises(InvalidRequestError, match="'cola'"):
            rounds.check(claim("x", "cola", 2, "delta"))

    def test_a_client_that_comes_into_an_asynchronous_round_has_the_task_that_lacks_most(self):
        rounds = engine(min_clients={"qqp": 1, "sst2": 2}, mode="async", buffer_size=9)
        rounds.join("x", "qqp", 0.0)
        rounds.join("y", "sst2", 0.0)
        rounds.join("z", "sst2", 0.0)
        rounds.advance(0.0)
        rounds.leave("z", 1.0)
        for client_id in ("late", "later"):
            rounds.join(client_id, "", 2.0, BOTH)
        assert [rounds.cohort[one].task for one in ("late", "later")] == ["qqp", "sst2"]

    @given(st.lists(st.sampled_from([("qqp",), ("sst2",), BOTH]), min_size=1, max_size=6), st.integers(0, 2))
    def test_a_round_that_opens_by_its_quorum_has_it(self, offers, needed):
        rounds = engine(min_clients={"qqp": needed, "sst2": 1})
        for number, tasks in enumerate(offers):
            rounds.join(f"c{number}", "", 0.0, tasks)
        both = sum(tasks == BOTH for tasks in offers)
        qqp, sst2 = (sum(tasks == (one,) for tasks in offers) for one in BOTH)
        can_open = max(0, needed - qqp) + max(0, 1 - sst2) <= both
        assert (rounds.advance(0.0) is Step.OPENED) == can_open
        if can_open:
            have = Counter(tasks_of(rounds).values())
            assert have["qqp"] >= needed
            assert have["sst2"] >= 1
            for number, tasks in enumerate(offers):
                assert tasks_of(rounds)[f"c{number}"] in tasks
        assert rounds.phase is (Phase.OPEN if can_open else Phase.WAITING)


async def push(client, event, value, **header):
    """Train what an event asks for: the slice of its task becomes the same number everywhere."""
    slice_, data = await client.get_slice(task=event.task, round=event.round)
    fields = {"task": event.task, "num_examples": 1} | header
    await client.push(client.update(slice_, full_of(data, value), **fields))


def several(server, client_id, tasks=BOTH, choice="", token=None):
    return WireClient(server, client_id, choice, token=token, tasks=tasks)


async def test_a_client_changes_its_head_between_rounds_and_the_head_it_left_stays_to_the_bit(tmp_path):
    model = tiny_model(*BOTH)
    before = model_bytes(model)
    async with serving(tmp_path, model, num_rounds=3, min_clients=0) as server, several(server, "x") as client:
        await client.watch()
        event = await client.until(OPENED, 1)
        assert (event.task, event.in_cohort) == ("qqp", True)
        await push(client, event, 1.0)
        event = await client.until(OPENED, 2)
        after = model_bytes(server.federation.model)
        assert event.task == "sst2"
        assert after["task:sst2"] == before["task:sst2"]
        assert after["task:qqp"] == full_of(after, 1.0)["task:qqp"]
        await push(client, event, 2.0)
        assert (await client.until(OPENED, 3)).task == "qqp"
        last = model_bytes(server.federation.model)
        assert last["task:qqp"] == after["task:qqp"]
        assert last["task:sst2"] == full_of(last, 2.0)["task:sst2"]
        assert last["shared"] == full_of(last, 2.0)["shared"]
        status = await client.stub.GetStatus(pb.GetStatusRequest())
    (one,) = status.clients
    assert (one.client_id, one.task, list(one.tasks), one.in_cohort) == ("x", "qqp", list(BOTH), True)
    assert {task.task: task.connected_clients for task in status.tasks} == {"qqp": 1, "sst2": 1}
    _, rounds, updates = history_of(tmp_path)
    assert [(one.round, one.client_id, one.task) for one in updates] == [(1, "x", "qqp"), (2, "x", "sst2")]
    assert [dict(one.cohort) for one in rounds][1:] == [{"x": "qqp"}, {"x": "sst2"}, {"x": "qqp"}]


async def test_a_client_of_two_tasks_does_the_one_that_the_quorum_needs(tmp_path):
    async with serving(tmp_path, tiny_model(*BOTH)) as server:
        async with several(server, "x") as both, WireClient(server, "y", "qqp") as other:
            waiting = await both.watch()
            assert waiting.waiting_for == "1 more sst2 client (x has it too, but is needed for qqp)"
            await other.watch()
            assert (await both.until(OPENED)).task == "sst2"
            assert (await other.until(OPENED)).task == "qqp"


async def test_a_client_names_its_next_task_with_its_update(tmp_path):
    async with serving(tmp_path, tiny_model(*BOTH), num_rounds=3, min_clients=0) as server:
        async with several(server, "x", choice="sst2") as client:
            await client.watch()
            had = []
            for round_, following in ((1, "sst2"), (2, "qqp"), (3, "")):
                event = await client.until(OPENED, round_)
                had.append(event.task)
                await push(client, event, 1.0, next_task=following)
            had.append((await client.until(OPENED, 4)).task)
    assert had == ["sst2", "sst2", "qqp", "qqp"]


async def test_a_server_that_takes_the_run_up_has_given_each_client_the_same_task(tmp_path):
    """Though the clients, had they come now, would have chosen others."""
    async with serving(tmp_path, tiny_model(*BOTH)) as server:
        async with several(server, "x", choice="qqp") as first, several(server, "y", choice="sst2") as second:
            await first.watch()
            await second.watch()
            event = await first.until(OPENED)
            await push(first, event, 1.0)
    model = tiny_model(*BOTH, encoder=TinyEncoder(seed=99))
    async with serving(tmp_path, model) as server:
        statuses = server.federation.status().clients
        assert {one.client_id: (one.task, one.reported) for one in statuses} == {
            "x": ("qqp", True),
            "y": ("sst2", False),
        }
        async with several(server, "x", choice="sst2") as first, several(server, "y", choice="qqp") as second:
            assert (await first.watch()).task == "qqp"
            event = await second.watch()
            assert (event.kind, event.task, event.in_cohort, event.reported) == (OPENED, "sst2", True, False)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await push(second, pb.WatchRoundsResponse(task="qqp", round=1), 5.0)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "takes part in round 1 as 'sst2', got 'qqp'" in refused.value.details()
            await push(second, event, 3.0)
            event = await first.until(OPENED, 2)
            after = model_bytes(server.federation.model)
        assert (event.task, event.purpose) == ("sst2", pb.ROUND_PURPOSE_EVALUATE)  # as it chooses now
    assert after == full_of(after, 2.0) | {
        "task:qqp": full_of(after, 1.0)["task:qqp"],
        "task:sst2": full_of(after, 3.0)["task:sst2"],
    }


async def test_a_watch_that_is_opened_again_costs_neither_presence_nor_the_task(tmp_path):
    async with serving(tmp_path, tiny_model(*BOTH), rejoin_grace_s=0.0, min_clients=0) as server:
        async with several(server, "x") as client, several(server, "x", choice="sst2") as again:
            await client.watch()
            event = await client.until(OPENED)
            assert (await again.watch()).task == event.task == "qqp"
            assert [one.connected for one in server.federation.status().clients] == [True]
            await push(again, event, 1.0)


@pytest.mark.parametrize(
    ("request_", "code", "told"),
    [
        ({"task": "sst2", "tasks": ["qqp"]}, "INVALID_ARGUMENT", "task: expected one of the request's tasks qqp, got"),
        ({"tasks": ["qqp", "qqp"]}, "INVALID_ARGUMENT", "tasks: expected each task once, got 'qqp' twice"),
        ({"tasks": ["qqp", "cola"]}, "NOT_FOUND", "expected one of qqp, sst2, got 'cola'"),
        ({"task": "cola", "tasks": ["qqp"]}, "NOT_FOUND", "expected one of qqp, sst2, got 'cola'"),
        ({"client_id": "", "tasks": ["qqp"]}, "INVALID_ARGUMENT", "expected a client_id and a task"),
    ],
)
async def test_tasks_that_make_no_sense_are_told(tmp_path, request_, code, told):
    async with serving(tmp_path, tiny_model(*BOTH)) as server, several(server, "x") as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in client.stub.WatchRounds(pb.WatchRoundsRequest(**{"client_id": "x", **request_})):
                pass
    assert (refused.value.code().name, told in refused.value.details()) == (code, True)


def test_a_stale_update_is_stale_whatever_it_chooses():
    rounds = engine()
    rounds.join("x", "", 0.0, BOTH)
    with pytest.raises(StaleRoundError):
        rounds.check(claim("x", "qqp", next_task="sst2"))


class AnyOrder(RuleBasedStateMachine):
    """Clients of one or two tasks come, go, choose and report in any order."""

    clients = st.sampled_from("wxyz")
    some = st.sampled_from([("qqp",), ("sst2",), BOTH, ("sst2", "qqp")])

    @initialize(needed=st.fixed_dictionaries({"qqp": st.integers(0, 2), "sst2": st.integers(0, 2)}))
    def begin(self, needed):
        self.engine, self.now, self.needed = engine(min_clients=needed, num_rounds=4), 0.0, needed
        self.given: dict[str, str] = {}

    @rule(client_id=clients, tasks=some, data=st.data())
    def join(self, client_id, tasks, data):
        choice = data.draw(st.sampled_from(["", *tasks])) if len(tasks) > 1 else tasks[0]
        self.engine.join(client_id, choice, self.now, tasks if len(tasks) > 1 else ())

    @rule(client_id=clients)
    def leave(self, client_id):
        self.engine.leave(client_id, self.now)

    @rule(client_id=clients, task=st.sampled_from(BOTH), next_task=st.sampled_from(["", *BOTH]))
    def report(self, client_id, task, next_task):
        kind = "parameters" if self.engine.purpose == "train" else "metrics"
        try:
            self.engine.count(claim(client_id, task, self.engine.round, kind, next_task))
        except (StaleRoundError, InvalidRequestError):
            return
        assert self.given[client_id] == task
        if next_task and client_id in self.engine.view.clients:
            assert self.engine.view.clients[client_id].preferred_task == next_task

    @rule(seconds=st.sampled_from([1.0, 6.0, 31.0, 1000.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def advance(self):
        offers, in_time = dict(self.engine.view.clients), self.engine.round == 1
        step = self.engine.advance(self.now)
        if step is Step.OPENED:
            self.given = tasks_of(self.engine)
            assert self.given.keys() == offers.keys()
            assert all(task in offers[client_id].eligible_tasks for client_id, task in self.given.items())
            have = Counter(self.given.values())
            assert not in_time or all(have[task] >= count for task, count in self.needed.items())
        elif step is Step.CLOSED:
            self.engine.committed(self.now)

    @invariant()
    def nobodys_task_changes_in_an_open_round(self):
        if self.engine.phase is Phase.OPEN:
            assert tasks_of(self.engine) == self.given


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_clients_that_have_all_chosen_an_auxiliary_task_do_not_stop_the_run():
    """The round opens once the others' quorum has been waited for, and their next choice comes with its updates."""
    rounds = engine(min_clients={"sst2": 1, "texts": 0}, auxiliary=frozenset({"texts"}), quorum_timeout_s=30.0)
    rounds.join("a", "sst2", 0.0, ["sst2", "texts"])
    assert rounds.advance(0.0) is Step.OPENED
    rounds.count(claim("a", "sst2", 1, next_task="texts"))
    assert rounds.advance(1.0) is Step.CLOSED
    rounds.committed(1.0)
    assert rounds.advance(30.0) is None
    assert rounds.advance(31.0) is Step.OPENED


def test_no_round_is_held_for_auxiliary_tasks_alone_where_a_client_has_others():
    rounds = engine(min_clients={"sst2": 0, "texts": 0}, auxiliary=frozenset({"texts"}), num_rounds=4)
    rounds.join("a", "", 0.0, ["sst2", "texts"])
    for round_ in range(1, 4):
        assert rounds.advance(float(round_)) is Step.OPENED
        assert tasks_of(rounds) == {"a": "sst2"}
        rounds.count(claim("a", "sst2", round_))
        assert rounds.advance(float(round_)) is Step.CLOSED
        rounds.committed(float(round_))
