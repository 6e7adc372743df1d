"""A run as a whole: what it remembers, whom it waits for at its end, and how it ends when its disk fails."""

import asyncio
import gc
import time
import weakref

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_core.errors import StoreError
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from fedmtl_server.transfer.incoming import Transfers
from tests.support import WireClient, eventually, serving, tiny_model, watching

OPENED, COMMITTED, FINISHED = (
    pb.ROUND_EVENT_KIND_OPENED,
    pb.ROUND_EVENT_KIND_COMMITTED,
    pb.ROUND_EVENT_KIND_FINISHED,
)
METRICS = {"kind": pb.UPDATE_KIND_METRICS, "num_examples": 0, "num_eval_examples": 10, "components": []}
MEMORY = {"store": {"durability": "memory"}}


async def report(client, round_):
    """Train a round, by sending the slice back."""
    header, data = await client.get_slice(round=round_)
    await client.push(client.update(header, data))


async def evaluate(client, round_):
    """Answer the last round."""
    header, _ = await client.get_slice(round=round_)
    await client.push(client.update(header, {}, **METRICS))


def full_disk(*_):
    raise StoreError("can't write the checkpoint: No space left on device")


# A commit that is written behind.


async def test_a_commit_that_could_not_be_written_behind_ends_the_run_at_once(tmp_path, monkeypatch):
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3, sections=MEMORY) as server:
        async with watching(server, a="sst2") as clients:
            await clients["a"].until(OPENED)
            monkeypatch.setattr(server.store, "write_model", full_disk)
            await report(clients["a"], 1)
            await clients["a"].until(COMMITTED, 1)
            with pytest.raises(StoreError, match="No space left on device"):
                async with asyncio.timeout(10):
                    await asyncio.shield(server.run_task)


async def test_a_commit_that_fails_while_the_server_stops_is_in_the_log(tmp_path, monkeypatch):
    with capture_logs() as logs:
        async with serving(tmp_path, tiny_model("sst2"), num_rounds=3, sections=MEMORY) as server:
            async with watching(server, a="sst2") as clients:
                await clients["a"].until(OPENED)

                def slowly_full(*_):
                    time.sleep(0.3)
                    full_disk()

                monkeypatch.setattr(server.store, "write_model", slowly_full)
                await report(clients["a"], 1)
                await clients["a"].until(COMMITTED, 1)
    (line,) = [line for line in logs if line["event"] == "commit.failed"]
    assert (line["log_level"], line["reason"]) == ("error", "can't write the checkpoint: No space left on device")


# Who is waited for at the end.


async def ended(server, clients):
    """A run whose last round `a` and `b` have reported in, `a` having left before it closed."""
    for client in clients.values():
        await report(client, 1)
    await clients["b"].until(OPENED, 2)
    await evaluate(clients["a"], 2)
    clients["a"].leave()
    await eventually(lambda: [one.connected for one in server.federation.status().clients] == [False, True])
    await evaluate(clients["b"], 2)
    await clients["b"].until(FINISHED)


async def test_a_client_that_reports_and_goes_is_not_waited_for_beyond_its_grace(tmp_path):
    rules = {"min_clients": 2, "rejoin_grace_s": 0.5}
    async with (
        serving(tmp_path, tiny_model("sst2"), **rules) as server,
        watching(server, a="sst2", b="sst2") as clients,
    ):
        await ended(server, clients)
        waiting = asyncio.create_task(server.federation.drain())
        await asyncio.sleep(0.1)
        assert not waiting.done()  # b is still there
        clients["b"].leave()
        async with asyncio.timeout(5):
            await waiting


async def test_a_client_that_is_back_within_its_grace_hears_that_the_run_is_over(tmp_path):
    rules = {"min_clients": 2, "rejoin_grace_s": 30.0}
    async with (
        serving(tmp_path, tiny_model("sst2"), **rules) as server,
        watching(server, a="sst2", b="sst2") as clients,
    ):
        await ended(server, clients)
        waiting = asyncio.create_task(server.federation.drain())
        clients["b"].leave()
        await eventually(lambda: not any(one.connected for one in server.federation.status().clients))
        assert not waiting.done()
        async with WireClient(server, "a", "sst2") as again:
            assert (await again.watch()).kind == FINISHED
            again.leave()
            async with asyncio.timeout(5):
                await waiting


async def test_after_a_restart_those_that_reported_get_the_time_to_come_back(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
        await report(clients["a"], 1)
        await clients["a"].until(OPENED, 2)
        await evaluate(clients["a"], 2)
        await clients["a"].until(COMMITTED)
    async with serving(tmp_path, tiny_model("sst2"), finished=True, quorum_timeout_s=1.0) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await server.federation.drain()
        async with asyncio.timeout(5):
            await server.federation.drain()


# What is remembered.


async def test_a_report_is_forgotten_when_the_next_one_is_there_and_the_metrics_stay(tmp_path):
    """It names every client in every component; the history has it."""
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3) as server:
        async with watching(server, a="sst2") as clients:
            reports = []
            for round_ in (1, 2, 3):
                header, data = await clients["a"].get_slice(round=round_)
                measured = {"received_metrics": {"accuracy": round_ / 4}, "num_eval_examples": 10}
                await clients["a"].push(clients["a"].update(header, data, **measured))
                await clients["a"].until(OPENED, round_ + 1)
                reports.append(weakref.ref(server.federation.last_report))
            gc.collect()
            assert [one() and one().round for one in reports] == [None, None, 3]
            assert server.federation.results()["sst2"].by_round == {0: 0.25, 1: 0.5, 2: 0.75}
            assert server.federation.status().tasks[0].last_metrics == {"accuracy": 0.75}


async def test_a_run_taken_up_has_the_metrics_of_its_rounds_and_the_last_report(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3) as server:
        async with watching(server, a="sst2") as clients:
            for round_ in (1, 2):
                header, data = await clients["a"].get_slice(round=round_)
                measured = {"received_metrics": {"accuracy": round_ / 4}, "num_eval_examples": 10}
                await clients["a"].push(clients["a"].update(header, data, **measured))
                await clients["a"].until(OPENED, round_ + 1)
    with capture_logs() as logs:
        async with serving(tmp_path, tiny_model("sst2"), num_rounds=3) as server:
            assert server.federation.results()["sst2"].by_round == {0: 0.25, 1: 0.5}
            assert server.federation.last_report.round == 2
            assert server.federation.status().tasks[0].last_metrics == {"accuracy": 0.5}
    (line,) = [line for line in logs if line["event"] == "run.resumed"]
    assert (line["log_level"], line["progress"], line["phase"]) == ("info", "Round 3/3", "open")
    assert (line["num_acknowledged"], line["acknowledged"]) == (0, "")


async def test_what_a_refused_update_said_of_itself_is_in_the_history(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
        await clients["a"].until(OPENED)
        header, data = await clients["a"].get_slice()
        late = {"base_round": 7, "update_id": "late", "kind": pb.UPDATE_KIND_DELTA, "num_examples": 5}
        with pytest.raises(grpc.aio.AioRpcError):
            await clients["a"].push(clients["a"].update(header, data, **late))
        with pytest.raises(grpc.aio.AioRpcError):
            await clients["a"].push([])
        await report(clients["a"], 1)
        await clients["a"].until(COMMITTED)
        refused = server.federation.last_report.refused
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    records = [one for one in history.updates(server.store.run_id) if one.outcome == "refused"]
    history.close()
    for known in (refused, records):
        said = [(one.client_id, one.update_id, one.base_round, one.kind, one.num_examples) for one in known]
        assert said == [("a", "late", 7, "delta", 5), ("", "", 0, "", 0)]


async def test_what_a_rounds_end_cuts_off_is_told_that_this_round_has_closed(tmp_path, monkeypatch):
    """Not the next one, which is what is in progress once the commit is dealt with."""
    told, end = [], Transfers.end

    def listened_to(transfers, error):
        told.append(str(error))
        end(transfers, error)

    monkeypatch.setattr(Transfers, "end", listened_to)
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
        await report(clients["a"], 1)
        await clients["a"].until(OPENED, 2)
    assert set(told) == {"round 1 has closed"}
