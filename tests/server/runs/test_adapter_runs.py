"""Rounds with adapters over gRPC, for each aggregation: exact products, and the same bits after a restart."""

import pytest
from fedmtl.v1 import federation_pb2 as pb

from tests.server.adapting import TASKS, mean_of, received, scaled, start, tensors, update_of
from tests.server.aggregation.adapters import cut, relative
from tests.support import model_bytes, reports_of, watching

AGGREGATIONS = {
    "freeze_a": {"aggregation": "freeze_a"},
    "alternate": {"aggregation": "alternate"},
    "average": {"aggregation": "average"},
    "svd": {"aggregation": "svd"},
    "rslora": {"aggregation": "svd", "kind": "rslora"},
    "ranks": {"aggregation": "svd", "ranks": {"small": 2}},
}
OF_KINDS = pytest.mark.parametrize("kind", ["parameters", "delta"])
RANKS = {"large": 4, "small": 4}


async def base_of(client):
    """The tensors that no round trains: with `freeze_a`, A is among them."""
    return tensors(*await client.get_slice(client_id=client.client_id, base=True))


@OF_KINDS
@pytest.mark.parametrize("name", ["freeze_a", "alternate", "svd"])
async def test_the_next_slice_has_the_clients_mean_product(name, kind, tmp_path):
    """`svd` the nearest one: two clients' products of rank 4 have rank 7 or 8 together."""
    async with start(tmp_path, num_rounds=3, **AGGREGATIONS[name]) as server, watching(server, **TASKS) as clients:
        frozen = await base_of(clients["large"])
        for round_ in (1, 2, 3):
            parts = {}
            for client_id, client in clients.items():
                messages, trained = await update_of(client, round_, kind)
                parts[client_id] = frozen | trained
                await client.push(messages)
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            wanted = mean_of(parts, RANKS)
            if name == "svd":
                wanted = {layer: cut(one, 4) for layer, one in wanted.items()}
            got = scaled(frozen | tensors(*await received(clients["small"], round_ + 1)), 4)
            assert relative(got, wanted) < 1e-6


async def finished(run_dir, name, kind, *, restarts):
    """Two rounds; the server may end between the two updates of the second one. The final model, and the reports."""
    async with start(run_dir, **AGGREGATIONS[name]) as server, watching(server, **TASKS) as clients:
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
    async with start(run_dir, **AGGREGATIONS[name]) as server, watching(server, **TASKS) as clients:
        reported = {one.client_id: one.reported for one in server.federation.status().clients}
        assert reported == {"large": False, "small": True}
        assert (await clients["small"].push(small)).outcome == pb.OUTCOME_DUPLICATE
        await clients["large"].push((await update_of(clients["large"], 2, kind))[0])
        await clients["large"].until(pb.ROUND_EVENT_KIND_OPENED, 3)
        return model_bytes(server.federation.model), reports_of(run_dir)


@OF_KINDS
@pytest.mark.parametrize("name", AGGREGATIONS)
async def test_after_a_restart_an_acknowledged_update_counts_to_the_same_bits(name, kind, tmp_path):
    undisturbed, reports = await finished(tmp_path / "one", name, kind, restarts=False)
    resumed, reports_after = await finished(tmp_path / "two", name, kind, restarts=True)
    assert resumed == undisturbed
    assert [one.components for one in reports_after] == [one.components for one in reports]  # with the norms
    assert [one.stages for one in reports_after] == [one.stages for one in reports]
    assert bool(reports[1].inexactness) == (name not in ("freeze_a", "alternate"))
