"""Clients of unequal ranks over gRPC: products against an independent computation in float64, and what each gets."""

import contextlib

import grpc
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.wire.encodings import decode
from fedmtl_core.wire.messages import component_from_proto
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.federations import run
from tests.server.adapting import TASKS, as_bytes, mean_of, moved, received, scaled, start, tensors, update_of
from tests.server.aggregation.adapters import cut, relative
from tests.support import WireClient, reports_of, watching

RANKS = {"large": 4, "small": 2}
UNEQUAL = {"aggregation": "svd", "ranks": {"small": 2, "absent": 3}}


@pytest.mark.parametrize("kind", ["parameters", "delta"])
async def test_two_rounds_of_ranks_2_and_4_serve_the_nearest_products_to_the_mean(kind, tmp_path):
    async with start(tmp_path, **UNEQUAL) as server, watching(server, **TASKS) as clients:
        for round_ in (1, 2):
            parts = {}
            for client_id, client in clients.items():
                header, _ = await received(client, round_)
                assert header.plan.adapters.rank == RANKS[client_id]
                messages, parts[client_id] = await update_of(client, round_, kind)
                await client.push(messages)
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            wanted = mean_of(parts, RANKS)
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
    async with start(tmp_path, **UNEQUAL) as server, watching(server, **TASKS) as clients:
        norms = {}
        for client in clients.values():
            header, data = await received(client, 1)
            norms[client.client_id] = float(moved(header, data, client.client_id)["shared"].double().norm())
            messages, _ = await update_of(client, 1, "parameters")
            await client.push(messages)
        await clients["small"].until(pb.ROUND_EVENT_KIND_OPENED, 2)
        (shared, _) = server.federation.last_report.components
    assert {part.client_id: part.norm for part in shared.contributions} == pytest.approx(norms, rel=1e-5)


async def test_an_update_of_another_rank_is_refused_by_the_tensors_shape(tmp_path):
    async with start(tmp_path, **UNEQUAL) as server, watching(server, **TASKS) as clients:
        await clients["small"].until(pb.ROUND_EVENT_KIND_OPENED, 1)
        header, data = await received(clients["large"], 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await clients["small"].push(clients["small"].update(header, data))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "first.lora_A.weight: expected float32 [2, 8], got float32 [4, 8]" in caught.value.details()


async def test_an_observer_gets_the_rank_of_clients_without_their_own(tmp_path):
    async with start(tmp_path, **UNEQUAL) as server, WireClient(server, "", "sst2") as observer:
        for fields in ({}, {"task": "", "all_tasks": True}, {"client_id": "large"}):
            header, data = await observer.get_slice(**fields)
            assert header.plan.adapters.rank == 4
            assert tensors(header, data)["encoder.first.lora_A.weight"].shape == (4, 8)


async def test_a_download_of_differences_follows_the_version_of_its_rank(tmp_path):
    """Int8 after the first round: what a client adds to the version before is for its own factors."""
    asked = {"client_id": "small", "encoding": pb.ENCODING_INT8}
    async with start(tmp_path, **UNEQUAL) as server, watching(server, **TASKS) as clients:
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
    with pytest.raises(
        ConfigError, match=r"model\.adapters\.ranks\.lab: expected at most 7, since second has 7 outputs"
    ):
        async with start(tmp_path, aggregation="svd", ranks={"lab": 8}):
            pass


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
