"""Whole rounds over a real loopback channel, with clients that share no code with the server's codec."""

import asyncio
import contextlib
import json

import grpc
import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmtl_client.api import FederationApi
from fedmtl_client.synchronizer import ClientModelSynchronizer
from fedmtl_core.model.modeling import HeadSettings, MultiTaskModel
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.server.test_model import bert_tiny
from tests.support import TASKS, OddEncoder, WireClient, eventually, model_bytes, serving, specs, tiny_model

OPENED, COMMITTED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_COMMITTED


@contextlib.asynccontextmanager
async def watching(server, *members):
    """Clients that watch, `(client_id, task)` each."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(WireClient(server, *member)) for member in members]
        for client in clients:
            await client.watch()
        yield clients


def random_like(data: dict[str, bytes], seed: int, scale: float = 1.0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    return {
        scope: (scale * rng.standard_normal(len(whole) // 4)).astype("<f4").tobytes() for scope, whole in data.items()
    }


def as_float64(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<f4").astype(np.float64)


cohorts = st.integers(1, 4).flatmap(
    lambda tasks: st.lists(st.tuples(st.sampled_from(TASKS[:tasks]), st.integers(1, 100_000)), min_size=2, max_size=7)
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cohort=cohorts, order=st.randoms(use_true_random=False), delta=st.booleans())
def test_after_a_round_the_model_is_the_weighted_mean_of_what_was_sent(tmp_path_factory, cohort, order, delta):
    first = asyncio.run(_round(tmp_path_factory.mktemp("run"), cohort, order, delta))
    second = asyncio.run(_round(tmp_path_factory.mktemp("run"), cohort, order, delta))
    assert first == second  # bit for bit, in another order of arrival


async def _round(run_dir, cohort, rng, delta) -> dict[str, bytes]:
    tasks = sorted({task for task, _ in cohort})
    model = tiny_model(*tasks)
    before = model_bytes(model)
    members = [(f"c{i}", task) for i, (task, _) in enumerate(cohort)]
    needed = {task: sum(other == task for _, other in members) for task in tasks}
    async with serving(run_dir, model, min_clients=needed) as server:
        async with watching(server, *members) as clients:
            sent = {}
            arrivals = list(zip(clients, (n for _, n in cohort), strict=True))
            for client, _ in arrivals:
                await client.until(OPENED)
            rng.shuffle(arrivals)
            for client, num_examples in arrivals:
                header, data = await client.get_slice(round=1)
                trained = random_like(data, seed=int(client.client_id[1:]))
                sent[client.client_id] = (client.task, num_examples, trained)
                kind = pb.UPDATE_KIND_DELTA if delta else pb.UPDATE_KIND_PARAMETERS
                receipt = await client.push(client.update(header, trained, num_examples=num_examples, kind=kind))
                assert receipt.outcome == pb.OUTCOME_ACCEPTED
            await clients[0].until(COMMITTED)
            after = model_bytes(model)
    for scope, data in after.items():
        claims = [(n, as_float64(d[scope])) for _, n, d in sent.values() if scope in d]
        claimed = sum(n for n, _ in claims)
        # One of several counts for no more than 0.99 of the average: 99 times the others.
        parts = [(min(n, 99 * (claimed - n)) if len(claims) > 1 else n, values) for n, values in claims]
        total = sum(n for n, _ in parts)
        base = as_float64(before[scope]) if delta else 0.0
        expected = sum(n * values for n, values in parts) / total + base
        magnitude = sum(n * np.abs(values) for n, values in parts) / total + np.abs(base)
        assert (np.abs(as_float64(data) - expected) <= 1e-6 * magnitude).all()
    return after


async def test_an_update_of_one_task_never_changes_a_bit_of_another_head(tmp_path):
    model = tiny_model("sst2", "qqp", "stsb")
    before = model_bytes(model)
    async with serving(tmp_path, model, min_clients={"sst2": 2}) as server:
        async with watching(server, ("a", "sst2"), ("b", "sst2")) as clients:
            await clients[0].until(OPENED)
            for client in clients:
                header, data = await client.get_slice()
                await client.push(client.update(header, random_like(data, 1)))
            event = await clients[0].until(COMMITTED)
            after = model_bytes(model)
    assert after["shared"] != before["shared"]
    assert after["task:sst2"] != before["task:sst2"]
    assert after["task:qqp"] == before["task:qqp"]
    assert after["task:stsb"] == before["task:stsb"]
    assert list(event.report.unchanged_tasks) == ["qqp", "stsb"]


@pytest.mark.parametrize(("encoder", "width"), [(bert_tiny, 128), (OddEncoder, 4)])
async def test_what_a_client_loads_is_what_the_server_holds_bit_for_bit(encoder, width, tmp_path):
    server_model = tiny_model("sst2", "qqp", encoder=encoder()) if width == 4 else _bert_tiny_model()
    held = model_bytes(server_model)
    client_model = MultiTaskModel(encoder(), specs("qqp"), hidden_size=width, heads=HeadSettings(seed=9))
    with torch.no_grad():
        for parameter in client_model.parameters():
            parameter.fill_(7.0)
    async with serving(tmp_path, server_model) as server:
        api = FederationApi(server.address, client_id="c", task="qqp")
        slice_ = await asyncio.to_thread(api.get_slice, 0)
        api.close()
    ClientModelSynchronizer(task="qqp").load(client_model, slice_.components)
    tensors = client_model.exchanged()
    for scope in server_model.scopes_for("qqp"):
        for name, spec in ((s.name, s) for s in server_model.components[scope].layout.tensors):
            loaded = tensors[name].detach().contiguous().view(-1).view(torch.uint8) if spec.num_elements else None
            expected = held[scope][spec.offset : spec.end]
            assert (loaded.numpy().tobytes() if loaded is not None else b"") == expected, name


def _bert_tiny_model():
    from fedmtl_server.model import MTLServerModel

    return MTLServerModel(bert_tiny(), specs("sst2", "qqp"), hidden_size=128)


async def test_a_slice_of_everything_has_every_head(tmp_path):
    model = tiny_model("sst2", "qqp", encoder=OddEncoder())
    async with serving(tmp_path, model) as server, WireClient(server, "c", "sst2") as client:
        header, data = await client.get_slice(task="", all_tasks=True)
    assert data == model_bytes(model)
    assert [component.scope for component in header.components] == ["shared", "task:sst2", "task:qqp"]
    assert header.total_bytes == sum(map(len, data.values()))


async def test_bytes_a_client_holds_already_are_not_sent_again(tmp_path):
    model = tiny_model("sst2", encoder=OddEncoder())
    async with serving(tmp_path, model) as server, WireClient(server, "c", "sst2") as client:
        header, data = await client.get_slice()
        held = [pb.HeldComponent(scope=c.scope, digest=c.digest, num_bytes=c.num_bytes) for c in header.components]
        assert (await client.get_slice(held=held))[1] == {"shared": b"", "task:sst2": b""}

        held[0].num_bytes = 3_000_000  # in the middle of the second chunk
        resumed, rest = await client.get_slice(held=held)
        start = resumed.components[0].start_offset
        assert 0 < start <= 3_000_000
        assert rest["shared"] == data["shared"][start:]

        held[0].digest = bytes(32)
        assert (await client.get_slice(held=held))[1]["shared"] == data["shared"]


async def test_a_retried_update_counts_once_and_is_answered_alike(tmp_path):
    model = tiny_model("sst2")
    async with serving(tmp_path, model, num_rounds=2, min_clients=2) as server:
        async with watching(server, ("a", "sst2"), ("b", "sst2")) as (a, b):
            await a.until(OPENED)
            header, data = await a.get_slice()
            update = a.update(header, random_like(data, 1), num_examples=3)
            first = await a.push(update)
            again = await a.push(update)
            assert (first.outcome, again.outcome) == (pb.OUTCOME_ACCEPTED, pb.OUTCOME_DUPLICATE)
            await b.push(b.update(header, random_like(data, 2), num_examples=1))
            event = await a.until(COMMITTED)
            late = await a.push(update)
            assert (late.outcome, late.round) == (pb.OUTCOME_DUPLICATE, 1)
    weights = {part.client_id: part.weight for part in event.report.components[0].contributions}
    assert weights == {"a": 0.75, "b": 0.25}


async def test_a_retry_beside_the_first_attempt_ends_that_and_counts_once(tmp_path):
    model = tiny_model("sst2")
    async with serving(tmp_path, model, min_clients=2) as server:
        async with watching(server, ("a", "sst2"), ("b", "sst2")) as (a, _):
            await a.until(OPENED)
            header, data = await a.get_slice()
            update = a.update(header, random_like(data, 1))
            resume = asyncio.Event()

            async def slow():
                for message in update[:2]:
                    yield message
                await resume.wait()
                for message in update[2:]:
                    yield message

            first = asyncio.ensure_future(a.stub.PushUpdate(slow()))
            await eventually(lambda: server.federation.staging.used_bytes > 0)
            assert (await a.push(update)).outcome == pb.OUTCOME_ACCEPTED
            resume.set()
            with pytest.raises(grpc.aio.AioRpcError, match="the client has opened another upload") as ended:
                await first
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert (await a.push(update)).outcome == pb.OUTCOME_DUPLICATE


async def test_a_run_ends_with_an_evaluation_of_the_final_model(tmp_path):
    model = tiny_model("sst2", "qqp")
    async with (
        serving(tmp_path, model, num_rounds=2) as server,
        watching(server, ("a", "sst2"), ("b", "qqp")) as clients,
    ):
        for round_ in (1, 2, 3):
            for client in clients:
                event = await client.until(OPENED, round_)
                header, data = await client.get_slice(round=round_)
                metrics = {"received_metrics": {"accuracy": round_ / 10}, "num_eval_examples": 5}
                if event.purpose == pb.ROUND_PURPOSE_EVALUATE:
                    metrics |= {"kind": pb.UPDATE_KIND_METRICS, "components": []}
                    data = {}
                await client.push(client.update(header, data, **metrics))
        finished = await clients[0].until(pb.ROUND_EVENT_KIND_FINISHED)
        assert finished.num_rounds == 2
        await eventually((tmp_path / "results.json").exists)
        assert (tmp_path / "metrics.png").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["sst2"]["by_round"] == {"0": 0.1, "1": 0.2, "2": 0.3}
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    rounds, metrics = history.rounds(server.store.run_id), history.metrics(server.store.run_id)
    history.close()
    assert [one.outcome for one in rounds] == ["committed"] * 4  # round 0 is the model before the first
    reports = [one.report for one in rounds if one.report is not None]
    assert [report["purpose"] for report in reports] == ["train", "train", "evaluate"]
    assert [(one.round, one.value) for one in metrics if one.task == "qqp"] == [(0, 0.1), (1, 0.2), (2, 0.3)]
    assert reports[0]["bytes_received"] == sum(
        len(whole) for scope, whole in model_bytes(model).items() for _ in range(2 if scope == "shared" else 1)
    )


async def test_a_client_that_leaves_does_not_hold_the_round_past_its_deadline(tmp_path):
    model = tiny_model("sst2", "qqp")
    async with serving(tmp_path, model, rejoin_grace_s=60.0, deadline_s=1.0) as server:
        async with watching(server, ("a", "sst2"), ("b", "qqp")) as (a, b):
            await a.until(OPENED)
            header, data = await a.get_slice()
            b.leave()
            await a.push(a.update(header, random_like(data, 1)))
            event = await a.until(COMMITTED)
    assert list(event.report.missing_clients) == ["b"]
    assert 0.9 < event.report.duration_seconds < 10


async def test_a_watcher_is_told_where_the_run_stands_and_an_observer_counts_for_nothing(tmp_path):
    async with serving(tmp_path, tiny_model("sst2", "qqp")) as server:
        async with WireClient(server, "", "") as observer, watching(server, ("a", "sst2")):
            event = await observer.watch()
            status = await observer.stub.GetStatus(pb.GetStatusRequest())
        assert event.kind == pb.ROUND_EVENT_KIND_WAITING
        assert status.phase == pb.PHASE_WAITING
        assert status.waiting_for == "1 more qqp client"
        assert [(c.client_id, c.task, c.connected, c.in_cohort) for c in status.clients] == [("a", "sst2", True, False)]
        assert status.model.total_parameters == status.model.shared_parameters + 2 * 10
        assert {t.task: t.connected_clients for t in status.tasks} == {"sst2": 1, "qqp": 0}


async def test_a_client_that_joins_an_open_round_is_told_it_is_not_in_the_cohort(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, ("a", "sst2")) as (a,):
        await a.until(OPENED)
        async with WireClient(server, "late", "sst2") as late:
            event = await late.watch()
    assert (event.kind, event.in_cohort, event.cohort_size) == (OPENED, False, 1)


async def test_a_client_that_comes_back_in_the_same_round_is_told_what_it_has_done(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), min_clients=2) as server:
        async with watching(server, ("a", "sst2"), ("b", "sst2")) as (a, _):
            await a.until(OPENED)
            async with WireClient(server, "a", "sst2") as again:
                event = await again.watch()
                assert (event.in_cohort, event.reported) == (True, False)
                header, data = await again.get_slice()
                await again.push(again.update(header, data))
            async with WireClient(server, "a", "sst2") as again:
                event = await again.watch()
                assert (event.in_cohort, event.reported) == (True, True)


async def test_health_and_reflection_answer(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "", "") as client:
        channel = client._channel
        health = health_pb2_grpc.HealthStub(channel)
        name = "fedmtl.v1.FederatedMtlService"
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        services = {service.name for service in (await call.read()).list_services_response.service}
        await call.done_writing()
    assert name in services
