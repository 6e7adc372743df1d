"""A server that ends and another that takes up its run: in one round, with every acknowledged update of it."""

import asyncio
import json
import threading

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, StoreError
from fedmtl_server.server import Server
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from fedmtl_server.storage.spool import Spool
from tests.support import TinyEncoder, WireClient, eventually, full_of, model_bytes, serving, tiny_model, watching

OPENED, COMMITTED, FINISHED = (
    pb.ROUND_EVENT_KIND_OPENED,
    pb.ROUND_EVENT_KIND_COMMITTED,
    pb.ROUND_EVENT_KIND_FINISHED,
)
METRICS = {"kind": pb.UPDATE_KIND_METRICS, "num_examples": 0, "num_eval_examples": 10, "components": []}


def other_model(*tasks):
    """What a restarted server builds, if the first one's parameters aren't read back: others."""
    return tiny_model(*tasks, encoder=TinyEncoder(seed=99))


def history_of(run_dir):
    history = History.open(run_dir / HISTORY_FILE, create=False)
    try:
        run = history.runs()[0]
        return run, history.rounds(run.run_id), history.updates(run.run_id)
    finally:
        history.close()


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_an_acknowledged_update_counts_after_a_restart_and_its_retry_is_a_duplicate(durability, tmp_path):
    settings = {"sections": {"store": {"durability": durability}}}
    async with serving(tmp_path, tiny_model("sst2", "qqp"), **settings) as server:
        async with watching(server, a="sst2", b="qqp") as clients:
            await clients["a"].until(OPENED)
            header, data = await clients["a"].get_slice()
            update = clients["a"].update(header, full_of(data, 1), num_examples=3)
            assert (await clients["a"].push(update)).outcome == pb.OUTCOME_ACCEPTED
        run_id = server.federation.run_id

    model = other_model("sst2", "qqp")
    async with serving(tmp_path, model, **settings) as server:
        assert server.federation.run_id == run_id
        status = server.federation.status()
        assert (status.phase.value, status.round) == ("open", 1)
        assert {one.client_id: one.reported for one in status.clients} == {"a": True, "b": False}
        async with watching(server, a="sst2", b="qqp") as clients:
            receipt = await clients["a"].push(update)
            assert (receipt.outcome, receipt.round) == (pb.OUTCOME_DUPLICATE, 1)
            header, data = await clients["b"].get_slice()
            await clients["b"].push(clients["b"].update(header, full_of(data, 5), num_examples=1))
            await clients["b"].until(COMMITTED, 1)
        await eventually(lambda: model.module.encoder.dense.bias.tolist() == [2.0] * 4)  # (3 * 1 + 1 * 5) / 4
    _, rounds, updates = history_of(tmp_path)
    assert [(one.client_id, one.round, one.outcome) for one in updates] == [("a", 1, "counted"), ("b", 1, "counted")]
    assert [(one.round, one.outcome) for one in rounds][:2] == [(0, "committed"), (1, "committed")]


async def test_in_memory_an_acknowledged_update_is_gone_and_the_round_is_held_without_it(tmp_path):
    """What `store.durability: memory` says."""
    settings = {"sections": {"store": {"durability": "memory"}}}
    async with serving(tmp_path, tiny_model("sst2", "qqp"), **settings) as server:
        async with watching(server, a="sst2", b="qqp") as clients:
            await clients["a"].until(OPENED)
            header, data = await clients["a"].get_slice()
            await clients["a"].push(clients["a"].update(header, data))
    async with serving(tmp_path, other_model("sst2", "qqp"), **settings) as server:
        assert {one.client_id: one.reported for one in server.federation.status().clients} == {"a": False, "b": False}


async def test_between_two_rounds_the_model_is_that_of_the_last_commit(tmp_path):
    first = tiny_model("sst2")
    async with serving(tmp_path, first, num_rounds=3) as server:
        async with watching(server, a="sst2") as clients:
            for round_ in (1, 2):
                header, data = await clients["a"].get_slice(round=round_)
                await clients["a"].push(clients["a"].update(header, full_of(data, round_)))
                await clients["a"].until(OPENED, round_ + 1)
            committed = model_bytes(first)
    second = other_model("sst2")
    async with serving(tmp_path, second, num_rounds=3) as server:
        assert model_bytes(second) == committed
        async with watching(server, a="sst2") as clients:
            header, data = await clients["a"].get_slice()
            assert (header.round, data) == (3, committed)
            assert server.federation.last_report.round == 2


async def test_a_metric_that_was_acknowledged_survives_too_and_then_the_run_is_over(tmp_path):
    async with serving(tmp_path, tiny_model("sst2", "qqp")) as server:
        async with watching(server, a="sst2", b="qqp") as clients:
            for client in clients.values():
                header, data = await client.get_slice()
                await client.push(client.update(header, data))
            await clients["a"].until(OPENED, 2)
            header, _ = await clients["a"].get_slice()
            measured = clients["a"].update(header, {}, received_metrics={"accuracy": 0.75}, **METRICS)
            await clients["a"].push(measured)
    async with serving(tmp_path, other_model("sst2", "qqp")) as server:
        async with watching(server, a="sst2", b="qqp") as clients:
            header, _ = await clients["b"].get_slice()
            await clients["b"].push(clients["b"].update(header, {}, received_metrics={"accuracy": 0.5}, **METRICS))
            await clients["b"].until(FINISHED)
        await server.run_task
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["sst2"]["last"], results["qqp"]["last"]) == (0.75, 0.5)
    assert history_of(tmp_path)[0].state == "finished"


async def test_a_run_that_is_over_is_not_begun_again_but_its_model_is_handed_out_if_asked_for(tmp_path):
    model = tiny_model("sst2")
    async with serving(tmp_path, model) as server, watching(server, a="sst2") as clients:
        header, data = await clients["a"].get_slice()
        await clients["a"].push(clients["a"].update(header, full_of(data, 3)))
        await clients["a"].until(OPENED, 2)
        header, _ = await clients["a"].get_slice()
        await clients["a"].push(clients["a"].update(header, {}, **METRICS))
        await clients["a"].until(FINISHED)
        await server.run_task
    with pytest.raises(StoreError, match=r"the run in .* is over: .*--keep-serving"):
        async with serving(tmp_path, other_model("sst2")):
            pass
    async with serving(tmp_path, other_model("sst2"), finished=True) as server, WireClient(server, "b", "sst2") as late:
        assert (await late.watch()).kind == FINISHED
        header, data = await late.get_slice()
        assert data == full_of(data, 3)


async def test_a_half_sent_update_is_not_there_after_a_restart(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        await client.until(OPENED)
        header, data = await client.get_slice()
        with pytest.raises(grpc.aio.AioRpcError):
            await client.push(client.update(header, data)[:2])
    async with serving(tmp_path, other_model("sst2")) as server:
        assert [one.reported for one in server.federation.status().clients] == [False]
        assert not list(tmp_path.glob("staging/*"))


async def test_a_run_is_not_taken_up_with_a_configuration_that_contradicts_it(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3):
        pass
    config = {"training": {"num_rounds": 4, "seed": 7}, "tasks": {"sst2": {"min_clients": 2}}, "server": {"port": 0}}
    with pytest.raises(ConfigError) as caught:
        Server(Config.model_validate(config), tmp_path, tiny_model("sst2"))
    assert "training.num_rounds: the run has 3, got 4; training.seed: the run has 42, got 7" in str(caught.value)
    assert "min_clients" not in str(caught.value)  # who has to be there may change


async def test_a_new_run_beside_an_unfinished_one_of_its_configuration_says_how_that_is_taken_up(tmp_path):
    runs_dir = {"settings": {"runs_dir": str(tmp_path)}}
    async with serving(tmp_path / "first", tiny_model("sst2"), num_rounds=3, **runs_dir):
        pass
    with capture_logs() as logs:
        async with serving(None, tiny_model("sst2"), num_rounds=3, **runs_dir) as server:
            assert server.store.run_dir.parent == tmp_path
    (warning,) = [line for line in logs if line["event"] == "run.not_resumed"]
    assert (warning["log_level"], warning["unfinished"]) == ("warning", str(tmp_path / "first"))
    assert warning["resume_with"] == f"fedmtl-server --resume {tmp_path / 'first'}"
    with capture_logs() as logs:
        async with serving(None, tiny_model("sst2"), num_rounds=4, **runs_dir):
            pass
    assert not [line for line in logs if line["event"] == "run.not_resumed"]


async def test_a_second_server_on_one_folder_is_refused_in_words(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")):
        with pytest.raises(StoreError, match="another server is serving the run"):
            async with serving(tmp_path, tiny_model("sst2")):
                pass


async def test_with_its_newest_checkpoint_damaged_a_run_goes_on_from_the_one_before_and_says_so(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3) as server:
        async with watching(server, a="sst2") as clients:
            for round_ in (1, 2):
                header, data = await clients["a"].get_slice(round=round_)
                await clients["a"].push(clients["a"].update(header, full_of(data, round_)))
                await clients["a"].until(OPENED, round_ + 1)
            header, data = await clients["a"].get_slice()
            await clients["a"].push(clients["a"].update(header, full_of(data, 3)))
            await clients["a"].until(COMMITTED, 3)
    path = tmp_path / "checkpoints" / "round-0003.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    model = other_model("sst2")
    with capture_logs() as logs:
        async with serving(tmp_path, model, num_rounds=3) as server:
            assert server.federation.status().round == 3
            assert model.module.encoder.dense.bias.tolist() == [2.0] * 4
    told = {line["event"]: line for line in logs}
    assert told["checkpoint.refused"]["round"] == 3
    assert told["run.rolled_back"]["to_round"] == 2
    assert [(one.round, one.outcome) for one in history_of(tmp_path)[2]] == [
        (1, "counted"),
        (2, "counted"),
        (3, "rolled_back"),
    ]


async def test_clients_have_the_time_to_come_back_after_a_restart(tmp_path):
    """More than the grace for one that disconnects: its next try may be seconds away."""
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        await client.until(OPENED)
    async with serving(tmp_path, other_model("sst2"), rejoin_grace_s=0.01) as server:
        await asyncio.sleep(0.2)
        assert server.federation.status().phase.value == "open"
        async with WireClient(server, "a", "sst2") as client:
            event = await client.watch()
            assert (event.kind, event.in_cohort, event.reported) == (OPENED, True, False)
            header, data = await client.get_slice()
            await client.push(client.update(header, data))
            await client.until(COMMITTED, 1)


async def test_an_update_given_up_while_it_was_written_does_not_count_after_a_restart(tmp_path, monkeypatch):
    """Its stream was cut, and its client, started again, was counted with another."""
    written, go_on, write = threading.Event(), threading.Event(), Spool.write

    def slow(*arguments):
        path = write(*arguments)
        written.set()
        go_on.wait(10)
        return path

    rules = {"num_rounds": 9, "min_clients": 1, "buffer_size": 2, "mode": "async"}
    delta = {"kind": pb.UPDATE_KIND_DELTA}
    async with (
        serving(tmp_path, tiny_model("sst2"), **rules) as server,
        watching(server, a="sst2", b="sst2") as clients,
    ):
        a, b = clients["a"], clients["b"]
        await a.until(OPENED)
        header, data = await a.get_slice(round=1)
        monkeypatch.setattr(Spool, "write", slow)
        cut = asyncio.ensure_future(a.push(a.update(header, full_of(data, 100), update_id="cut", **delta)))
        await asyncio.to_thread(written.wait, 10)
        cut.cancel()
        await asyncio.gather(cut, return_exceptions=True)
        monkeypatch.setattr(Spool, "write", write)
        await a.push(a.update(header, full_of(data, 1), update_id="a1", **delta))
        go_on.set()
        await b.push(b.update(header, full_of(data, 1), update_id="b1", **delta))
        await a.until(OPENED, 2)
    async with (
        serving(tmp_path, tiny_model("sst2"), **rules) as server,
        watching(server, a="sst2", b="sst2") as clients,
    ):
        assert [one.client_id for one in server.federation.status().clients if one.reported] == []
        for client in clients.values():
            header, data = await client.get_slice(round=2)
            await client.push(client.update(header, full_of(data, 1), update_id=f"{client.client_id}2", **delta))
        await clients["a"].until(COMMITTED, 2)
    _, _, updates = history_of(tmp_path)
    assert [(one.round, one.update_id) for one in updates] == [(1, "a1"), (1, "b1"), (2, "a2"), (2, "b2")]


async def test_an_update_acknowledged_with_metrics_that_are_refused_by_now_counts_without_them(tmp_path, monkeypatch):
    """Servers have taken any metric; what one acknowledged survives the upgrade."""
    with monkeypatch.context() as patch:
        patch.setattr("fedmtl_core.wire.update_headers.metrics_from_proto", lambda field, metrics, spec: dict(metrics))
        async with serving(tmp_path, tiny_model("sst2", "qqp")) as server:
            async with watching(server, a="sst2", b="qqp") as clients:
                await clients["a"].until(OPENED)
                header, data = await clients["a"].get_slice()
                percent = {"received_metrics": {"accuracy": 87.5}, "num_eval_examples": 5}
                await clients["a"].push(clients["a"].update(header, full_of(data, 1), **percent))
    async with serving(tmp_path, other_model("sst2", "qqp")) as server:
        assert {one.client_id: one.reported for one in server.federation.status().clients} == {"a": True, "b": False}
        async with watching(server, a="sst2", b="qqp") as clients:
            header, data = await clients["b"].get_slice()
            await clients["b"].push(clients["b"].update(header, full_of(data, 1)))
            event = await clients["b"].until(COMMITTED)
    reports = {task.task: task for task in event.report.tasks}
    assert reports["sst2"].num_updates == 1
    assert dict(reports["sst2"].received_metrics) == {}
