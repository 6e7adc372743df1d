"""Clients of unequal ranks over gRPC: products against an independent computation in float64, and restarts."""

import contextlib
import math

import grpc
import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from torch import nn

from fedmtl_core.config import Config
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.wire.encodings import decode
from fedmtl_core.wire.messages import component_from_proto
from fedmtl_server.model import MTLServerModel
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.federations import run
from tests.server.aggregation.adapters import cut, products, relative
from tests.support import WireClient, model_bytes, reports_of, serving, specs, watching

ALPHA, RANKS = 16.0, {"large": 4, "small": 2}
EXAMPLES = {"large": 1, "small": 3}
TARGETS = ["first", "second"]
SECTIONS = {
    "model": {
        "adapters": {"aggregation": "svd", "rank": 4, "alpha": ALPHA, "ranks": {"small": 2}, "targets": TARGETS},
    }
}
TASKS = dict.fromkeys(RANKS, "sst2")
KINDS = {"parameters": pb.UPDATE_KIND_PARAMETERS, "delta": pb.UPDATE_KIND_DELTA}


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(12, 7)
        for number, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))


def model():
    adapters = AdapterSettings(4, ALPHA, targets=tuple(TARGETS))
    return MTLServerModel(TwoLayers(), specs("sst2"), hidden_size=7, adapters=adapters)


def start(run_dir, **rounds):
    return serving(run_dir, model(), num_rounds=2, min_clients=2, sections=SECTIONS, **rounds)


def as_bytes(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def tensors(header, data):
    """The tensors of a slice by name."""
    return {
        spec.name: torch.frombuffer(bytearray(data[one.scope]), dtype=torch.float32)[
            spec.offset // 4 : spec.offset // 4 + math.prod(spec.shape)
        ].view(*spec.shape)
        for one in header.components
        for spec in one.tensors
    }


def scaled(parameters, rank):
    """What the layers with adapters add to their outputs."""
    return {layer: ALPHA / rank * one for layer, one in products(parameters).items()}


async def received(client, round_):
    header, data = await client.get_slice(client_id=client.client_id, round=round_)
    assert header.plan.adapters.rank == RANKS[client.client_id]
    return header, data


def moved(data, client_id, round_):
    """What a client's training adds to its slice, by scope."""
    draw = torch.Generator().manual_seed(100 * round_ + len(client_id) + ord(client_id[0]))
    return {scope: torch.randn(len(part) // 4, generator=draw) for scope, part in data.items()}


async def update_of(client, round_, kind):
    """A client's update of a round: its messages, and the trained parameters by name."""
    header, data = await received(client, round_)
    change = moved(data, client.client_id, round_)
    trained = {
        scope: (torch.frombuffer(bytearray(data[scope]), dtype=torch.float32) + one).numpy().tobytes()
        for scope, one in change.items()
    }
    sent = trained if kind == "parameters" else {scope: one.numpy().tobytes() for scope, one in change.items()}
    messages = client.update(header, sent, num_examples=EXAMPLES[client.client_id], kind=KINDS[kind])
    return messages, tensors(header, trained)


def mean_of(parts):
    """The mean of what the clients' layers add to their outputs."""
    each = {client: scaled(part, RANKS[client]) for client, part in parts.items()}
    return {layer: sum(EXAMPLES[client] / 4 * one[layer] for client, one in each.items()) for layer in each["small"]}


@pytest.mark.parametrize("kind", ["parameters", "delta"])
async def test_two_rounds_of_ranks_2_and_4_serve_the_nearest_products_to_the_mean(kind, tmp_path):
    async with start(tmp_path) as server, watching(server, **TASKS) as clients:
        for round_ in (1, 2):
            parts = {}
            for client in clients.values():
                messages, parts[client.client_id] = await update_of(client, round_, kind)
                await client.push(messages)
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            wanted = mean_of(parts)
            got = {
                client.client_id: scaled(tensors(*await received(client, round_ + 1)), RANKS[client.client_id])
                for client in clients.values()
            }
            for client_id, rank in RANKS.items():
                nearest = {layer: cut(one, rank) for layer, one in wanted.items()}
                assert relative(got[client_id], nearest) < 2e-6
            (first, _) = server.federation.last_report.components
            assert server.federation.last_report.stages["adapters"]["inexactness"] == {
                first.scope: pytest.approx(relative(got["large"], wanted), rel=1e-4)
            }


async def test_a_norm_is_that_of_the_factors_that_the_client_trained(tmp_path):
    async with start(tmp_path) as server, watching(server, **TASKS) as clients:
        norms = {}
        for client in clients.values():
            _, data = await received(client, 1)
            norms[client.client_id] = float(moved(data, client.client_id, 1)["shared"].double().norm())
            messages, _ = await update_of(client, 1, "parameters")
            await client.push(messages)
        await clients["small"].until(pb.ROUND_EVENT_KIND_OPENED, 2)
        (shared, _) = server.federation.last_report.components
    assert {part.client_id: part.norm for part in shared.contributions} == pytest.approx(norms, rel=1e-5)


async def test_an_update_of_another_rank_is_refused_by_the_tensors_shape(tmp_path):
    async with start(tmp_path) as server, watching(server, **TASKS) as clients:
        await clients["small"].until(pb.ROUND_EVENT_KIND_OPENED, 1)
        header, data = await received(clients["large"], 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await clients["small"].push(clients["small"].update(header, data))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "first.lora_A.weight: expected float32 [2, 8], got float32 [4, 8]" in caught.value.details()


async def test_an_observer_gets_the_rank_of_clients_without_their_own(tmp_path):
    async with start(tmp_path) as server, WireClient(server, "", "sst2") as observer:
        for fields in ({}, {"task": "", "all_tasks": True}, {"client_id": "large"}):
            header, data = await observer.get_slice(**fields)
            assert header.plan.adapters.rank == 4
            assert tensors(header, data)["encoder.first.lora_A.weight"].shape == (4, 8)


async def test_a_download_of_differences_follows_the_version_of_its_rank(tmp_path):
    """Int8 after the first round: what a client adds to the version before is for its own factors."""
    asked = {"client_id": "small", "encoding": pb.ENCODING_INT8}
    async with start(tmp_path) as server, watching(server, **TASKS) as clients:
        small = clients["small"]
        await small.until(pb.ROUND_EVENT_KIND_OPENED, 1)
        first, old = await small.get_slice(**asked)
        for client in clients.values():
            messages, _ = await update_of(client, 1, "parameters")
            await client.push(messages)
        await small.until(pb.ROUND_EVENT_KIND_OPENED, 2)
        held = [
            pb.HeldComponent(scope=one.scope, digest=one.digest, encoding=pb.ENCODING_FLOAT32, num_bytes=one.num_bytes)
            for one in first.components
        ]
        second, difference = await small.get_slice(**asked, held=held)
        _, exact = await received(small, 2)
    before, after = first.components[0], second.components[0]
    assert (before.encoding, after.encoding) == (pb.ENCODING_FLOAT32, pb.ENCODING_INT8)
    assert after.base_digest == before.digest
    layout = component_from_proto(before).layout
    moved_by = decode(layout, "int8", as_bytes(difference["shared"])).buffer.view(torch.float32)
    wanted = as_bytes(exact["shared"]).view(torch.float32) - as_bytes(old["shared"]).view(torch.float32)
    assert float((moved_by - wanted).abs().max()) < float(wanted.abs().max()) / 100


async def test_a_rank_that_a_layer_can_not_have_stops_the_start(tmp_path):
    sections = {"model": {"adapters": {**SECTIONS["model"]["adapters"], "ranks": {"lab": 8}}}}
    adapters = AdapterSettings(8, ALPHA, targets=tuple(TARGETS))
    wide = MTLServerModel(TwoLayers(), specs("sst2"), hidden_size=7, adapters=adapters)
    with pytest.raises(Exception, match=r"model\.adapters\.ranks\.lab: expected at most 7, since second has 7 outputs"):
        async with serving(tmp_path, wide, sections=sections):
            pass


# Restarts.


async def finished(run_dir, kind, *, restarts):
    """Two rounds; the server may end between the two updates of the second one. The final model, and the reports."""
    async with start(run_dir) as server, watching(server, **TASKS) as clients:
        for client in clients.values():
            await client.push((await update_of(client, 1, kind))[0])
        for client in clients.values():
            await client.until(pb.ROUND_EVENT_KIND_OPENED, 2)
        small, _ = await update_of(clients["small"], 2, kind)
        await clients["small"].push(small)
        if not restarts:
            await clients["large"].push((await update_of(clients["large"], 2, kind))[0])
            await clients["large"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
            return model_bytes(server.federation.model), reports_of(run_dir)
    async with start(run_dir) as server, watching(server, **TASKS) as clients:
        assert {one.client_id: one.reported for one in server.federation.status().clients} == {
            "large": False,
            "small": True,
        }
        assert (await clients["small"].push(small)).outcome == pb.OUTCOME_DUPLICATE
        await clients["large"].push((await update_of(clients["large"], 2, kind))[0])
        await clients["large"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
        return model_bytes(server.federation.model), reports_of(run_dir)


@pytest.mark.parametrize("kind", ["parameters", "delta"])
async def test_after_a_restart_an_acknowledged_update_of_the_smaller_rank_counts_to_the_same_bits(kind, tmp_path):
    undisturbed, reports = await finished(tmp_path / "one", kind, restarts=False)
    resumed, reports_after = await finished(tmp_path / "two", kind, restarts=True)
    assert resumed == undisturbed
    assert [one.stages for one in reports_after] == [one.stages for one in reports]
    assert reports[1].stages["adapters"]["inexactness"]["shared"] > 0
    assert [one.components for one in reports_after] == [one.components for one in reports]  # with the norms
    assert np.isfinite([part.norm for part in reports[1].components[0].contributions]).all()


# Whole clients.


@pytest.mark.parametrize(
    "overrides",
    [{}, {"training": {"update": "delta"}, "wire": {"upload": "int8", "download": "int8", "compression": "zstd"}}],
    ids=["exact", "int8"],
)
def test_clients_train_with_the_rank_of_their_plan(overrides, tmp_path):
    task = {"train_samples": 40, "val_samples": 20, "data": {"builtin": "sst2"}}
    base = {
        "model": {"server_model": "builtin:toy", "adapters": {"aggregation": "svd", "rank": 4, "ranks": RANKS}},
        "training": {"num_rounds": 2, "local_epochs": 1, "max_length": 32},
        "rounds": {"rejoin_grace_s": 0.5},
        "server": {"port": 0},
        "tasks": {"sst2": {"min_clients": 3, **task}},
        "clients": [{"client_id": name, "task": "sst2"} for name in ("small", "large", "other")],
    }
    config = Config.model_validate({**base, **overrides, "training": base["training"] | overrides.get("training", {})})
    results, clients = run(config, tmp_path)
    assert list(results["sst2"].by_round) == [0, 1, 2]
    assert [[work.purpose for work in one.rounds.values()] for one in clients] == [["train", "train", "evaluate"]] * 3
    with contextlib.closing(History.open(tmp_path / HISTORY_FILE, create=False)) as history:
        sizes = {
            one.client_id: one.num_bytes
            for one in history.updates(history.runs()[0].run_id)
            if (one.round, one.outcome) == (2, "counted")
        }
    assert sizes["other"] == sizes["large"] > 1.4 * sizes["small"]
    assert 0 < reports_of(tmp_path)[1].inexactness["shared"] < 1
