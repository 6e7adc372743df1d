"""Rounds with `aggregation: stack`: the mean product goes into the base, on the server and on every client."""

import dataclasses

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedmtl_client.api import FederationApi
from fedmtl_client.base import BaseSource, ModelBase
from fedmtl_client.data import load_task_data
from fedmtl_client.task_state import ClientTask, WorkerSettings
from fedmtl_client.worker import RoundWorker
from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.wire.layout import Component, joint_digest
from fedmtl_server import Server
from fedmtl_server.commands.runs import runs_app
from fedmtl_server.export.folders import export_task
from fedmtl_server.saved_runs import load_model, open_run
from tests.federations import run
from tests.server.adapting import TASKS, mean_of, received, start, tensors, update_of
from tests.server.aggregation.adapters import relative
from tests.support import model_bytes, watching

CPU = torch.device("cpu")
RANKS = {"large": 4, "small": 4}


async def base_of(client):
    """The header of the base's stream, and its components' bytes by scope."""
    return await client.get_slice(client_id=client.client_id, base=True)


def weights_of(header, data):
    return {
        name.removesuffix(".weight"): one.double().numpy()
        for name, one in tensors(header, data).items()
        if name.endswith(".weight") and one.ndim == 2
    }


@pytest.mark.parametrize("kind", ["parameters", "delta"])
async def test_the_next_base_has_the_clients_mean_product(kind, tmp_path):
    async with start(tmp_path, num_rounds=3, aggregation="stack") as server, watching(server, **TASKS) as clients:
        for round_ in (1, 2, 3):
            before = weights_of(*await base_of(clients["large"]))
            parts = {}
            for client_id, client in clients.items():
                messages, parts[client_id] = await update_of(client, round_, kind)
                await client.push(messages)
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            after = weights_of(*await base_of(clients["small"]))
            wanted = mean_of(parts, RANKS)
            assert wanted.keys() == after.keys()
            change = {layer: after[layer] - before[layer] for layer in wanted}
            assert relative(change, wanted) < 1e-6
            fresh = tensors(*await received(clients["large"], round_ + 1))
            new = [one for name, one in fresh.items() if name.startswith("encoder.") and name.endswith("lora_B.weight")]
            assert new
            assert not any(one.any() for one in new)


async def test_a_slice_has_the_stack_of_the_round_before_and_the_digests_that_it_leads_from_and_to(tmp_path):
    async with start(tmp_path, num_rounds=2, aggregation="stack") as server, watching(server, **TASKS) as clients:
        first_header, first = await base_of(clients["large"])
        for client in clients.values():
            await client.push((await update_of(client, 1, "parameters"))[0])
        for client in clients.values():
            await client.until(pb.ROUND_EVENT_KIND_OPENED, 2)
        header, data = await received(clients["small"], 2)
        last_header, _ = await base_of(clients["large"])
    scopes = [one.scope for one in header.components]
    assert "stack:shared" in scopes
    (stacked,) = (one for one in header.components if one.scope == "stack:shared")
    assert stacked.read_only
    assert len(data["stack:shared"]) == 2 * 4 * ((8 + 12) + (12 + 7)) * 4  # two clients' factors of rank 4
    digests = {one.scope: one.digest for one in first_header.components}
    assert header.stack_base_digest == digests["merged"]
    last = {one.scope: one.digest for one in last_header.components}
    assert last["frozen"] == digests["frozen"]
    assert header.base_digest == joint_digest(last.values())
    assert first.keys() == {"frozen", "merged"}


async def finished(run_dir, *, restarts):
    """Two rounds; the server may end between the two updates of the second one. The final model and its base."""
    async with start(run_dir, aggregation="stack") as server, watching(server, **TASKS) as clients:
        for client in clients.values():
            await client.push((await update_of(client, 1, "parameters"))[0])
        for client in clients.values():
            await client.until(pb.ROUND_EVENT_KIND_OPENED, 2)
        small, _ = await update_of(clients["small"], 2, "parameters")
        await clients["small"].push(small)
        if not restarts:
            await clients["large"].push((await update_of(clients["large"], 2, "parameters"))[0])
            await clients["large"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
            return result(server)
    async with start(run_dir, aggregation="stack") as server, watching(server, **TASKS) as clients:
        await clients["large"].push((await update_of(clients["large"], 2, "parameters"))[0])
        await clients["large"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
        return result(server)


def result(server):
    model = server.federation.model
    return model_bytes(model), {scope: one.digest() for scope, one in model.base.items()}


async def test_after_a_restart_an_acknowledged_update_counts_to_the_same_bits(tmp_path):
    assert await finished(tmp_path / "two", restarts=True) == await finished(tmp_path / "one", restarts=False)


def toy(**more):
    return Config.model_validate(
        {
            "model": {
                "server_model": "builtin:toy",
                "head_dropout": 0,
                "adapters": {"aggregation": "stack", "rank": 4},
            },
            "training": {"num_rounds": 3, "local_epochs": 1, "learning_rate": 0.01, "max_length": 32},
            "rounds": {"rejoin_grace_s": 0.5},
            "server": {"port": 0},
            "tasks": {
                task: {"train_samples": 64, "val_samples": 32, "data": {"builtin": task}} for task in ("sst2", "qqp")
            },
            "clients": [{"client_id": task, "task": task} for task in ("sst2", "qqp")],
            **more,
        }
    )


def task_of(name):
    section = toy().tasks[name]
    spec = section.spec(name)
    return ClientTask(spec, load_task_data(spec, section.data), section.train_samples, section.val_samples)


def test_clients_follow_the_base_without_downloading_it(tmp_path, monkeypatch):
    """Each client's model has the server's base in every round, the evaluation of the final model included."""
    joined, downloads = [], []
    require, download = ModelBase.require, ModelBase._download

    def noting(self, slice_, server):
        require(self, slice_, server)
        parts = [Component.pack(scope, one) for scope, one in self._model.base().items()]
        joined.append((slice_.round, joint_digest(one.digest() for one in parts) == slice_.base_digest))

    monkeypatch.setattr(ModelBase, "require", noting)
    monkeypatch.setattr(ModelBase, "_download", lambda *arguments: downloads.append(1) or download(*arguments))
    run(toy(), tmp_path / "run")
    assert sorted(joined) == sorted([(round_, True) for round_ in (1, 2, 3, 4)] * 2)
    assert downloads == []
    saved = open_run(tmp_path / "run")
    bases = [load_model(saved, round_).base["merged"].digest() for round_ in saved.rounds()]
    assert len(set(bases)) == len(bases)


def test_a_client_that_missed_a_round_downloads_what_changes_alone(tmp_path, monkeypatch):
    """Its base is that of two rounds before, so it can't use the stack of the last one."""
    received, require = [], ModelBase.require

    def forgetful(self, slice_, server):
        if slice_.round == 3 and slice_.task == "qqp":
            self._digests["merged"] = b"older"  # as after a missed round
        noting = dataclasses.replace(server, download=lambda own: received.append(got := server.download(own)) or got)
        require(self, slice_, noting)

    monkeypatch.setattr(ModelBase, "require", forgetful)
    _, done = run(toy(), tmp_path / "run")
    assert [list(client.rounds) for client in done] == [[1, 2, 3, 4]] * 2
    assert [list(one) for one in received] == [["merged"]]


def test_what_travels_is_every_clients_factors_down_and_ones_own_up(tmp_path, monkeypatch):
    """And the adapters to train, which are new in each round. A slice that is asked for again sends no stack again."""
    received, get_slice = {}, FederationApi.get_slice

    def counting(self, round_, **arguments):
        slice_ = get_slice(self, round_, **arguments)
        again = get_slice(self, round_, **arguments)
        received.setdefault(slice_.round, set()).add((slice_.bytes_received, again.bytes_received))
        return slice_

    monkeypatch.setattr(FederationApi, "get_slice", counting)
    _, done = run(toy(), tmp_path / "run")
    model = load_model(open_run(tmp_path / "run"), 3)
    factors, head = (model.components[scope].layout.num_bytes for scope in ("shared", "task:sst2"))
    assert received[1] == {(factors + head, 0)}
    assert received[2] == received[3] == received[4] == {(factors + head + len(done) * factors, 0)}
    assert {one.rounds[2].bytes_sent for one in done} == {factors + head}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The folder of a run of three rounds, and what its clients did."""
    folder = tmp_path_factory.mktemp("stacked") / "run"
    return folder, run(toy(), folder)[1]


@pytest.mark.parametrize("fetches", [False, True], ids=["own weights", "no weights"])
def test_a_newcomer_downloads_what_it_lacks_and_has_the_clients_model(finished_run, fetches):
    folder, done = finished_run
    downloads = []
    with Server(toy(), folder, keep_serving=True) as server:
        api = FederationApi(server.address, client_id="late", task="sst2")
        worker = RoundWorker("late", [task_of("sst2")], WorkerSettings(CPU, fetch_base=fetches))
        slice_ = api.get_slice(0, cache=worker.cache)

        def download(own):
            downloads.append(api.get_base(slice_, own))
            return downloads[-1]

        update = worker.evaluate(slice_, base=BaseSource(lambda: api.describe_base(slice_).tensors, download))
        api.close()
    assert [list(one) for one in downloads] == [["frozen", "merged"] if fetches else ["merged"]]
    (sst2,) = (one for one in done if one.client_id == "sst2")
    assert update.received.metrics == sst2.rounds[4].received_metrics


def test_a_newcomer_with_another_encoder_is_refused_by_the_first_tensor_that_differs(finished_run):
    folder, _ = finished_run
    with Server(toy(), folder, keep_serving=True) as server:
        api = FederationApi(server.address, client_id="late", task="sst2")
        worker = RoundWorker("late", [task_of("sst2")], WorkerSettings(CPU))
        slice_ = api.get_slice(0)
        other = dataclasses.replace(slice_, plan=dataclasses.replace(slice_.plan, seed=slice_.plan.seed + 1))
        source = BaseSource(lambda: api.describe_base(slice_).tensors, lambda own: pytest.fail("it downloads the base"))
        with pytest.raises(ConfigError, match=r"embeddings\.word_embeddings\.weight is the first of"):
            worker.evaluate(other, base=source)
        api.close()


def test_an_observer_gets_neither_base_nor_stack_and_a_lossy_download_leaves_b_at_zero(finished_run):
    folder, _ = finished_run
    with Server(toy(), folder, keep_serving=True) as server:
        api = FederationApi(server.address, client_id="late", task="sst2")
        whole = api.get_slice(0, all_tasks=True)
        half = api.get_slice(0, encoding="float16")
        api.close()
    assert whole.components.keys() == {"shared", "task:sst2", "task:qqp"}
    assert not whole.stacks
    assert torch.equal(half.components["shared"].buffer, whole.components["shared"].buffer)
    assert not torch.equal(half.components["task:sst2"].buffer, whole.components["task:sst2"].buffer)


def test_the_export_of_an_earlier_round_has_that_rounds_base(finished_run, tmp_path):
    folder, _ = finished_run
    saved = open_run(folder)
    weights = {}
    for round_ in (1, 3):
        export_task(saved, "sst2", tmp_path / str(round_), round_)
        state = load_file(tmp_path / str(round_) / "model.safetensors")
        merged = load_model(saved, round_).base["merged"].views()
        for name, weight in merged.items():
            (exported,) = (one for key, one in state.items() if key.endswith(name.removeprefix("encoder.")))
            assert torch.equal(exported, weight)
        weights[round_] = merged[min(merged)]
    assert not torch.equal(weights[1], weights[3])


async def test_a_run_that_was_rolled_back_comes_to_the_same_bits(tmp_path):
    expected = await finished(tmp_path, restarts=False)
    rolled_back = CliRunner().invoke(runs_app, ["rollback", str(tmp_path), "--to-round", "1"])
    assert rolled_back.exit_code == 0, rolled_back.output
    async with start(tmp_path, aggregation="stack") as server, watching(server, **TASKS) as clients:
        for client in clients.values():
            await client.push((await update_of(client, 2, "parameters"))[0])
        await clients["large"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
        assert result(server) == expected
