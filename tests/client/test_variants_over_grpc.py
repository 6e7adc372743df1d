"""Real clients and a real server: variants are downloaded, evaluated and told, and training is as without them."""

from __future__ import annotations

import asyncio

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_client.api import FederationApi
from fedmtl_client.component_cache import ComponentCache
from fedmtl_client.session import ClientSession
from fedmtl_core.errors import InvalidRequestError, MalformedStreamError, UnavailableError
from fedmtl_core.tasks.paired import PairedLoss
from fedmtl_server.aggregation.variants import make_variant
from tests.client.test_trials import losses_of
from tests.client.test_worker import CONFIG, NUM_EVALUATED, model_of, worker_of
from tests.server.offering import install
from tests.support import CuttingProxy, OddEncoder, eventually, model_bytes, reports_of, serving, tiny_model, watching

OFFERS = {"sst2": ("own", "mixed")}
CLIENTS = {"client-a": "sst2", "client-b": "sst2", "client-c": "stsb"}


def session_of(address, client_id, task, reconnect_s=60.0, **settings):
    api = FederationApi(address, client_id=client_id, task=task, reconnect_s=reconnect_s)
    return ClientSession(api, worker_of(task, client_id=client_id, **settings))


def serving_toy(run_dir, port=0, **rounds):
    sections = CONFIG.model_dump(mode="json", exclude_unset=True)
    sections["tasks"]["sst2"]["min_clients"] = 2
    return serving(run_dir, model_of(), sections=sections, port=port, **rounds)


async def run(run_dir, **settings):
    """The model at the end of a run of two tasks."""
    async with serving_toy(run_dir) as server:
        sessions = [session_of(server.address, *client, **settings) for client in CLIENTS.items()]
        await asyncio.gather(*(asyncio.to_thread(session.run) for session in sessions))
        await server.run_task
        return model_bytes(server.federation.model)


@pytest.mark.parametrize("settings", [{}, {"upload": "int8"}, {"download": "float16"}], ids=str)
async def test_a_run_with_variants_trains_the_same_model_and_knows_each_variants_loss(settings, tmp_path, monkeypatch):
    plain = await run(tmp_path / "plain", **settings)
    stages = install(monkeypatch, offers=OFFERS)
    assert await run(tmp_path / "tried", **settings) == plain
    assert stages[0].seen.keys() == {1, 2, 3}
    for results in stages[0].seen.values():
        assert [one.name for one in results["sst2"]] == ["own", "mixed"]
        assert all(list(one.clients) == ["client-a", "client-b"] for one in results["sst2"])
    reports = reports_of(tmp_path / "tried")
    assert [len(report.tasks[0].variants) for report in reports] == [2, 2, 2]
    sent = [sum(report.bytes_sent for report in reports_of(tmp_path / name)) for name in ("plain", "tried")]
    assert sent[1] > sent[0]


async def test_the_figures_of_a_variant_are_those_of_all_clients_rows_one_by_one(tmp_path, monkeypatch):
    stages = install(monkeypatch, offers=OFFERS)
    async with serving_toy(tmp_path) as server:
        first = {one.name: one.views() for one in stages[0].variants({}, "train")["sst2"]}
        sessions = [session_of(server.address, *client) for client in CLIENTS.items()]
        await asyncio.gather(*(asyncio.to_thread(session.run) for session in sessions))
    theirs = losses_of({})
    for result in stages[0].seen[1]["sst2"]:
        one = PairedLoss.of(losses_of(first[result.name]), theirs)
        both = PairedLoss.pooled([one, one])  # both clients have the same evaluation rows
        assert result.paired.num_examples == 2 * NUM_EVALUATED
        assert result.paired.loss == pytest.approx(both.loss, rel=1e-4)
        assert result.paired.difference == pytest.approx(both.difference, rel=1e-3)
        assert result.paired.standard_error == pytest.approx(both.standard_error, rel=1e-3)


async def test_a_server_that_is_taken_up_in_mid_round_has_what_clients_have_said(tmp_path, monkeypatch):
    """One client has reported when the server ends; the run ends as one without a restart does."""
    stages = install(monkeypatch, offers=OFFERS, chooses=True)
    whole = await run(tmp_path / "whole")
    expected = stages[-1].seen
    running = []
    async with serving_toy(tmp_path / "again") as server:
        port = int(server.address.rpartition(":")[2])
        for client_id in ("client-a", "client-c"):
            session = session_of(server.address, client_id, CLIENTS[client_id])
            running.append(asyncio.create_task(asyncio.to_thread(session.run)))
        async with watching(server, **{"client-b": "sst2"}):
            await eventually(lambda: sum(one.reported for one in server.federation.status().clients) == 2)
    async with serving_toy(tmp_path / "again", port, rejoin_grace_s=60) as server:
        session = session_of(server.address, "client-b", "sst2")
        running.append(asyncio.create_task(asyncio.to_thread(session.run)))
        async with asyncio.timeout(120):
            await asyncio.gather(*running)
        await server.run_task
        assert model_bytes(server.federation.model) == whole
    again = stages[-1].seen
    assert [(one.name, one.paired) for results in again.values() for one in results["sst2"]] == [
        (one.name, one.paired) for results in expected.values() for one in results["sst2"]
    ]


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_a_download_that_breaks_continues_where_it_was(compression, tmp_path, monkeypatch):
    stages = install(monkeypatch)
    large = torch.randn(1_150_001, generator=torch.Generator().manual_seed(1))
    variant = make_variant("sst2", "large", {"encoder.large": large})
    model = tiny_model("sst2", encoder=OddEncoder())
    async with serving(tmp_path, model, min_clients=1) as server:
        monkeypatch.setattr(stages[0], "_made", {"sst2": [variant]})
        async with watching(server, a="sst2"):
            await eventually(lambda: server.federation._round.is_open.is_set())
            slice_ = await asyncio.to_thread(api_of(server.address).get_slice, 1)
            assert slice_.variants == {"large": 0.0}
            async with CuttingProxy(server.address, [3_000_000, 1_000_000]) as proxy:
                api = api_of(proxy.address, compression=compression)
                got = await asyncio.to_thread(api.get_variant, slice_, "large")
                assert proxy.num_cut == 2
                assert proxy.bytes_passed < 1.8 * 4 * 1_150_001  # what had arrived whole did not come again
                api.close()
    (component,) = got.components.values()
    assert torch.equal(component.views()["encoder.large"], large)


def api_of(address, **options):
    return FederationApi(address, client_id="a", task="sst2", reconnect_s=20.0, **options)


async def test_what_a_client_has_of_a_variant_is_copied_from_there(tmp_path, monkeypatch):
    stages = install(monkeypatch)
    model = tiny_model("sst2")
    head = model.components["task:sst2"].views()
    async with serving(tmp_path, model) as server:
        monkeypatch.setattr(stages[0], "_made", {"sst2": [make_variant("sst2", "same", head)]})
        async with watching(server, a="sst2"):
            await eventually(lambda: server.federation._round.is_open.is_set())
            api, cache = api_of(server.address), ComponentCache()
            slice_ = await asyncio.to_thread(lambda: api.get_slice(1, cache=cache))
            got = await asyncio.to_thread(lambda: api.get_variant(slice_, "same", cache=cache))
            api.close()
    (component,) = got.components.values()
    assert got.bytes_received == 0
    assert all(torch.equal(view, head[name]) for name, view in component.views().items())
    assert component.buffer.data_ptr() != cache.component(slice_.components["task:sst2"].layout).buffer.data_ptr()
    assert len(cache.versions()) == 2


async def test_errors_of_a_download_are_those_of_a_slice(tmp_path, monkeypatch):
    install(monkeypatch)
    async with serving(tmp_path, tiny_model("sst2")) as server:
        async with watching(server, a="sst2"):
            await eventually(lambda: server.federation._round.is_open.is_set())
            api = api_of(server.address)
            slice_ = await asyncio.to_thread(api.get_slice, 1)
            with pytest.raises(InvalidRequestError, match="variant: expected one of own, mixed, got 'other'"):
                await asyncio.to_thread(api.get_variant, slice_, "other")
            api.close()
        gone = api_of(server.address)
    with pytest.raises(UnavailableError):
        await asyncio.to_thread(lambda: gone.get_variant(slice_, "own", should_stop=lambda: True))
    gone.close()


async def test_a_server_that_sends_the_slice_instead_of_a_variant_is_not_followed(tmp_path, monkeypatch):
    """An older server, which took over in the middle of a round, doesn't know variants."""
    install(monkeypatch)
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2"):
        await eventually(lambda: server.federation._round.is_open.is_set())
        api = api_of(server.address)
        slice_ = await asyncio.to_thread(api.get_slice, 1)
        send = api._connection.get_slice

        def older(request, **options):
            without = pb.GetSliceRequest.FromString(request.SerializeToString())
            without.ClearField("variant")
            return send(without, **options)

        monkeypatch.setattr(api._connection, "get_slice", older)
        with pytest.raises(MalformedStreamError, match="expected the variant 'own', but the server sends the slice"):
            await asyncio.to_thread(api.get_variant, slice_, "own")
        api.close()
