"""Clients that die or stall, and connections that break: the run goes on, and comes to the same model."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_client.api import ConnectionSettings, FederationApi
from fedmtl_client.transport import RoundEvent
from fedmtl_core.errors import UnavailableError
from fedmtl_core.runtime.keepalive import keepalive
from fedmtl_server.server import _OPTIONS, Server
from tests.faults.clients import run_clients
from tests.faults.harness import (
    COHORT,
    ClientProcess,
    Undisturbed,
    accounts,
    checkpoint,
    require_same_bits,
    served,
    wait_until,
)
from tests.faults.proxy import Faults, FaultyProxy
from tests.support import WideEncoder, WireClient, eventually, serving, tiny_model

SEED = 1
FEW_ROUNDS = 3


def everybody_watches(server: Server) -> bool:
    return sum(client.connected for client in server.federation.status().clients) == len(COHORT)


@pytest.mark.long
async def test_clients_killed_at_random_come_back_and_count_once(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Each of two processes has half the clients; one of them dies in the middle of what it does, again and again."""
    names = sorted(COHORT)
    halves = [{name: COHORT[name] for name in names[start::2]} for start in (0, 1)]
    draw = random.Random(SEED)
    async with served(tmp_path, FEW_ROUNDS) as server:
        pace = tmp_path / "pace"
        pace.write_text("0")
        processes = [
            ClientProcess(tmp_path, f"clients-{number}", server.address, half, seed=SEED, pace=str(pace))
            for number, half in enumerate(halves)
        ]
        try:
            for process in processes:
                process.start()
            for life in range(4):
                victim = processes[life % 2]
                await asyncio.to_thread(wait_until, lambda: everybody_watches(server), within_s=60)
                (tmp_path / "pace").write_text(str(FEW_ROUNDS * (life + 1) / 5))
                await asyncio.sleep(draw.uniform(0.0, 0.5))
                await asyncio.to_thread(victim.kill)
                victim.start()
            pace.write_text("inf")
            codes = await asyncio.gather(*(asyncio.to_thread(process.wait, 60) for process in processes))
        finally:
            for process in processes:
                process.kill()
        assert codes == [0, 0], processes[0].log() + processes[1].log()
    accounts(tmp_path / "run", [process.ledger for process in processes]).require_exact(FEW_ROUNDS)
    require_same_bits(checkpoint(tmp_path / "run", FEW_ROUNDS), undisturbed.after(FEW_ROUNDS))


async def test_a_client_that_stalls_in_its_upload_keeps_neither_the_round_nor_the_memory(tmp_path: Path) -> None:
    model = tiny_model("sst2", encoder=WideEncoder(1_000_000))
    times = {"deadline_s": 1.5, "transfer_timeout_s": 0.4}
    async with (
        serving(tmp_path, model, min_clients=2, **times) as server,
        WireClient(server, "well", "sst2") as well,
        WireClient(server, "stalled", "sst2") as stalled,
    ):
        for client in (well, stalled):
            await client.watch()
        await stalled.until(pb.ROUND_EVENT_KIND_OPENED)
        header, data = await stalled.get_slice()
        messages = stalled.update(header, data)

        async def half() -> AsyncIterator[pb.PushUpdateRequest]:
            for message in messages[: len(messages) // 2]:
                yield message
            await asyncio.Event().wait()

        upload = stalled.stub.PushUpdate(half())
        await eventually(lambda: server.federation.staging.used_bytes > 0)
        with pytest.raises(grpc.aio.AioRpcError, match=r"no message arrived for 0\.4 s") as refusal:
            await upload
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        await well.push(well.update(header, data))
        event = await well.until(pb.ROUND_EVENT_KIND_COMMITTED)
        assert [part.client_id for part in event.report.components[0].contributions] == ["well"]
        assert list(event.report.missing_clients) == ["stalled"]
        await eventually(lambda: server.federation.staging.used_bytes == 0)
        assert [one.code for one in event.report.refused] == ["UNAVAILABLE"]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(cut_after=(1_000, 12_000_000), delay_s=0.002, max_cuts=25), id="cut and delayed"),
        pytest.param(Faults(cut_after=(1_000, 12_000_000), bytes_per_s=5e7, max_cuts=10), id="cut and throttled"),
        pytest.param(Faults(duplicate_share=1.0, cut_after=(1_000, 12_000_000), max_cuts=10), id="cut and duplicated"),
    ],
)
async def test_connections_that_break_anywhere_change_nothing_in_the_model(
    faults: Faults, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    async with served(tmp_path, FEW_ROUNDS) as server:
        with FaultyProxy(server.address, faults, seed=SEED) as proxy:
            ledger = tmp_path / "ledger"
            clients = asyncio.create_task(asyncio.to_thread(run_clients, proxy.address, ledger, COHORT, seed=SEED))
            await asyncio.sleep(0.3)
            proxy.refuse(0.5)
            async with asyncio.timeout(90):
                await clients
            assert proxy.counts["cut"] >= 5, proxy.counts
            assert proxy.counts["duplicated"] > 0 or not faults.duplicate_share
    accounts(tmp_path / "run", [ledger]).require_exact(FEW_ROUNDS)
    require_same_bits(checkpoint(tmp_path / "run", FEW_ROUNDS), undisturbed.after(FEW_ROUNDS))


async def test_a_client_that_only_watches_notices_that_its_connection_is_dead_and_watches_again(tmp_path: Path) -> None:
    """Nothing comes over it any more, and nothing says so: a host that lost power, a gateway that forgot."""
    events: list[RoundEvent] = []
    async with serving(tmp_path, tiny_model("sst2"), min_clients=2) as server:
        with FaultyProxy(server.address) as proxy:
            api = FederationApi(
                proxy.address,
                client_id="a",
                task="sst2",
                connection=ConnectionSettings(
                    channel_options={**keepalive(1.0, 3.0), "grpc.use_local_subchannel_pool": 1}
                ),
            )
            watcher = threading.Thread(target=lambda: events.extend(api.watch()), daemon=True)
            watcher.start()
            try:
                await eventually(lambda: bool(events))
                await asyncio.sleep(4)  # and a few pings
                seen = len(events)
                proxy.go_dark()
                await asyncio.to_thread(wait_until, lambda: len(events) > seen, within_s=20)
            finally:
                api.close()
                watcher.join(10)


async def test_a_client_whose_connection_is_dead_is_missed_within_the_keepalive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after gRPC's own minute."""

    def is_there() -> bool:
        return any(one.connected for one in server.federation.status().clients)

    def watch(api: FederationApi) -> None:
        with contextlib.suppress(UnavailableError):  # it is closed
            list(api.watch())

    monkeypatch.setattr("fedmtl_server.server._OPTIONS", _OPTIONS | keepalive(1.0, 3.0))
    async with serving(tmp_path, tiny_model("sst2"), min_clients=2) as server:
        with FaultyProxy(server.address) as proxy:
            silent = {"grpc.keepalive_time_ms": 2**31 - 1, "grpc.use_local_subchannel_pool": 1}
            settings = ConnectionSettings(channel_options=silent)
            api = FederationApi(proxy.address, client_id="a", task="sst2", connection=settings)
            watcher = threading.Thread(target=lambda: watch(api), daemon=True)
            watcher.start()
            try:
                await eventually(is_there)
                await asyncio.sleep(4)  # and a few pings
                proxy.go_dark()
                await asyncio.to_thread(wait_until, lambda: not is_there(), within_s=20)
            finally:
                api.close()
                watcher.join(10)
