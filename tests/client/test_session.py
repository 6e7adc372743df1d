"""A client's life, against a real server where the wire matters, against a script where the order of events does."""

import asyncio
import contextlib
import threading
from dataclasses import replace

import pytest
import torch

from fedmtl_client.api import FederationApi
from fedmtl_client.data import load_task_data
from fedmtl_client.schedule import TaskSchedule
from fedmtl_client.session import ClientSession
from fedmtl_client.slices import Slice
from fedmtl_client.task_state import ClientTask, WorkerSettings
from fedmtl_client.transport import Receipt, RoundEvent
from fedmtl_client.worker import RoundWorker
from fedmtl_core.config import Config, DataConfig, TaskConfig
from fedmtl_core.errors import ClientReplacedError, ConfigError, UnavailableError
from fedmtl_core.model import encoder_check
from fedmtl_core.model.modeling import TOY_MODEL
from fedmtl_core.runtime.tracing import OFF
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.wire.updates import Update
from fedmtl_server.model import MTLServerModel
from tests.support import WireClient, eventually, reports_of, serving

SST2 = PRESETS["sst2"]
CONFIG = Config.model_validate(
    {
        "model": {"server_model": TOY_MODEL},
        "training": {"local_epochs": 1, "num_rounds": 2},
        "tasks": {"sst2": {"data": {"builtin": "sst2"}}},
    }
)


def toy_model() -> MTLServerModel:
    return MTLServerModel.from_config(CONFIG)


def session_of(api, rows=64, tracing=OFF, **settings) -> ClientSession:
    data = load_task_data(SST2, DataConfig(builtin="sst2"))
    task = ClientTask(SST2, data, train_samples=rows, val_samples=20)
    worker = RoundWorker("a", [task], WorkerSettings(torch.device("cpu"), model=TOY_MODEL, **settings), tracing)
    return ClientSession(api, worker, tracing=tracing)


def real_api(address, reconnect_s=20.0) -> FederationApi:
    return FederationApi(address, client_id="a", task="sst2", reconnect_s=reconnect_s)


async def test_a_session_takes_part_in_every_round_and_ends_with_the_run(tmp_path):
    async with serving(tmp_path, toy_model(), num_rounds=2) as server:
        await asyncio.to_thread(session_of(real_api(server.address)).run)
    reports = reports_of(tmp_path)
    assert [report.tasks[0].num_updates for report in reports] == [1, 1, 1]
    assert reports[0].tasks[0].num_examples == 64
    assert reports[0].tasks[0].received_metrics.keys() == {"accuracy", "loss"}
    assert reports[0].tasks[0].trained_metrics.keys() == {"accuracy", "loss", "train_loss"}
    assert reports[2].tasks[0].trained_metrics == {}


async def test_a_session_checks_its_encoder_once_for_all_rounds_and_tasks(tmp_path, monkeypatch):
    checked, check = [], encoder_check.check

    def recording(encoder, tokenizer, use, weights):
        checked.append(use)
        return check(encoder, tokenizer, use, weights)

    names = ("sst2", "qqp")
    model = MTLServerModel.from_config(CONFIG.model_copy(update={"tasks": dict.fromkeys(names, TaskConfig())}))
    monkeypatch.setattr(encoder_check, "check", recording)
    tasks = [
        ClientTask(PRESETS[name], load_task_data(PRESETS[name], DataConfig(builtin=name)), 64, 20) for name in names
    ]
    async with serving(tmp_path, model, num_rounds=3, min_clients=0) as server:
        api = FederationApi(server.address, client_id="a", task="sst2", tasks=names, reconnect_s=20.0)
        worker = RoundWorker("a", tasks, WorkerSettings(torch.device("cpu"), model=TOY_MODEL))
        session = ClientSession(api, worker, schedule=TaskSchedule(names, "round_robin"))
        result = await asyncio.to_thread(session.run)
    assert {work.task for work in result.rounds.values()} == set(names)
    assert checked == [encoder_check.Use(TOY_MODEL, 128, "cls", pairs=True)]


async def test_a_session_whose_client_id_is_taken_up_stops_though_it_trains(tmp_path):
    async with serving(tmp_path, toy_model()) as server, WireClient(server, "a", "sst2") as other:
        running = asyncio.create_task(asyncio.to_thread(session_of(real_api(server.address), rows=6000).run))
        await eventually(lambda: server.federation.status().phase.value == "open")
        await other.watch()
        with pytest.raises(
            ClientReplacedError, match=r"another process has connected as client 'a' .*its own --client-id"
        ):
            await running
        assert [client.reported for client in server.federation.status().clients] == [False]


async def test_a_session_goes_on_with_a_new_run_where_the_old_one_was(tmp_path):
    async with serving(tmp_path / "1", toy_model(), num_rounds=50) as server:
        port = int(server.address.rpartition(":")[2])
        running = asyncio.create_task(asyncio.to_thread(session_of(real_api(server.address)).run))
        await eventually(lambda: server.federation.last_report is not None)
    async with serving(tmp_path / "2", toy_model(), num_rounds=2, port=port) as server:
        async with asyncio.timeout(60):
            await running
        assert [report.tasks[0].num_updates for report in reports_of(tmp_path / "2")] == [1, 1, 1]


async def test_a_session_works_again_on_a_round_whose_updates_the_server_lost_with_its_memory(tmp_path):
    memory = {"sections": {"store": {"durability": "memory"}}}
    async with serving(tmp_path, toy_model(), num_rounds=1, min_clients=2, **memory) as server:
        port = int(server.address.rpartition(":")[2])
        async with WireClient(server, "b", "sst2") as other:
            await other.watch()
            running = asyncio.create_task(asyncio.to_thread(session_of(real_api(server.address)).run))
            clients = server.federation.status
            await eventually(lambda: [one.reported for one in clients().clients if one.client_id == "a"] == [True])
    async with serving(
        tmp_path, toy_model(), port=port, num_rounds=1, min_clients=2, quorum_timeout_s=2.0, **memory
    ) as server:
        async with asyncio.timeout(60):
            await running
        assert [report.tasks[0].num_updates for report in reports_of(tmp_path)] == [1, 1]


async def test_a_session_gives_up_on_a_server_that_stays_away(tmp_path):
    async with serving(tmp_path, toy_model(), num_rounds=50) as server:
        running = asyncio.create_task(asyncio.to_thread(session_of(real_api(server.address, reconnect_s=0.5)).run))
        await eventually(lambda: server.federation.last_report is not None)
    with pytest.raises(UnavailableError):
        async with asyncio.timeout(60):
            await running


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("positive", "negative"), "has the labels negative, positive; this client has positive, negative"),
        (
            ("negative", "neutral", "positive"),
            "has the labels negative, positive; this client has negative, neutral, p",
        ),
    ],
)
async def test_a_session_that_means_something_else_by_its_tasks_labels_stops_before_it_trains(labels, told, tmp_path):
    other = replace(SST2, labels=labels)
    data = load_task_data(other, DataConfig(builtin="sst2"))
    settings = WorkerSettings(torch.device("cpu"), model=TOY_MODEL)
    worker = RoundWorker("a", [ClientTask(other, data, 64, 20)], settings)
    async with serving(tmp_path, toy_model()) as server:
        with pytest.raises(ConfigError, match=f"^task sst2: the server {told}"):
            await asyncio.to_thread(ClientSession(real_api(server.address), worker).run)
        assert [client.reported for client in server.federation.status().clients] == [False]


async def test_the_whole_model_is_of_no_one_task(tmp_path):
    async with serving(tmp_path, toy_model()) as server:
        with contextlib.closing(real_api(server.address)) as api:
            assert (await asyncio.to_thread(api.get_slice, 0)).plan.labels == ("negative", "positive")
            whole = await asyncio.to_thread(api.get_slice, 0, all_tasks=True)
    assert (whole.plan.task_type, whole.plan.labels) == (None, ())


class ScriptedTransport:
    """A server that is a script: it sends events when told to, and records what it is sent."""

    client_id = "a"

    def __init__(self, script):
        self._script = script
        self.updates: list[Update] = []
        self.fetched = threading.Event()
        self.updated = threading.Event()
        self.round = 0

    def watch(self):
        for event in self._script(self):
            self.round = event.round
            yield event

    def get_slice(self, round_, *, run_id, task, encoding, cache, should_stop):
        purpose = "evaluate" if round_ > 2 else "train"
        self.fetched.set()
        return Slice(run_id, round_, task, purpose, CONFIG.plan("sst2"), toy_model().components)

    def push_update(self, update, components, should_stop):
        self.updates.append(update)
        self.updated.set()
        return Receipt("accepted", self.round)

    def close(self):
        pass


def event(kind, round_=1, **fields):
    is_taken = kind in ("waiting", "opened")
    fields = {"oldest_base_round": round_ if is_taken else round_ + 1} | fields
    return RoundEvent(run_id="run", kind=kind, round=round_, num_rounds=2, **fields)


def opened(round_=1, **fields):
    return event("opened", round_, **({"in_cohort": True, "task": "sst2"} | fields))


def finished():
    return event("finished", 3)


def test_an_event_that_waited_while_its_update_was_counted_is_not_worked_on_again():
    def script(api):
        yield opened()
        api.fetched.wait(120)
        yield opened()  # as after a short disconnect
        api.updated.wait(120)
        api.updated.clear()
        api.updated.wait(1)
        yield finished()

    api = ScriptedTransport(script)
    session_of(api, rows=500).run()
    assert [update.base_round for update in api.updates] == [1]


def test_a_round_that_the_server_holds_again_is_worked_on_again():
    """It has lost the update, with its memory or with a damaged checkpoint."""

    def script(api):
        yield opened()
        api.updated.wait(120)
        api.updated.clear()
        yield event("committed", 1)
        yield event("waiting", 1)
        yield opened()
        api.updated.wait(120)
        yield finished()

    api = ScriptedTransport(script)
    session_of(api).run()
    assert [update.base_round for update in api.updates] == [1, 1]


@pytest.mark.parametrize("fields", [{"in_cohort": False}, {"reported": True}])
def test_a_round_that_does_not_ask_for_this_client_is_not_worked_on(fields):
    def script(api):
        yield opened(**fields)
        api.updated.wait(0.5)
        yield finished()

    api = ScriptedTransport(script)
    session_of(api).run()
    assert api.updates == []


def test_training_stops_when_the_round_closes_and_the_next_one_is_taken_up():
    def script(api):
        yield opened(1)
        api.fetched.wait(30)
        yield event("committed", 1)
        yield opened(2)
        api.updated.wait(30)
        yield finished()

    api = ScriptedTransport(script)
    session_of(api, rows=500).run()
    assert [update.base_round for update in api.updates] == [2]


def test_training_goes_on_over_a_commit_where_updates_may_be_stale_and_the_round_it_counts_in_is_not_worked_on():
    """As with asynchronous rounds."""

    def script(api):
        yield opened(1)
        api.fetched.wait(30)
        yield event("committed", 1, oldest_base_round=1)
        yield opened(2, oldest_base_round=1)
        api.updated.wait(30)
        api.updated.clear()
        api.updated.wait(1)
        yield finished()

    api = ScriptedTransport(script)
    session_of(api, rows=500).run()
    assert [update.base_round for update in api.updates] == [1]


def test_whatever_ends_the_watch_reaches_the_main_thread():
    def script(api):
        yield event("waiting")
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError), contextlib.closing(ScriptedTransport(script)) as api:
        session_of(api).run()
