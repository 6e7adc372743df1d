"""Many clients at once, and little memory: what they get, and what becomes of what they send."""

import asyncio

import grpc
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb

from tests.support import WideEncoder, WireClient, eventually, model_bytes, serving, tiny_model

OPENED, COMMITTED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_COMMITTED


def full_of(data, number):
    """A slice's bytes, with every number the same."""
    return {scope: torch.full((len(part) // 4,), float(number)).numpy().tobytes() for scope, part in data.items()}


@pytest.mark.parametrize("durability", ["memory", "process", "power"])
async def test_updates_beyond_the_memory_are_averaged_all_the_same(durability, tmp_path):
    """Room for two, nine clients, and the one to be folded first comes last: seven wait or lie in files."""
    model = tiny_model("sst2", encoder=WideEncoder(500_000))
    names = [f"c{number}" for number in range(9)]
    settings, sections = {"staging_memory_mb": 0}, {"store": {"durability": durability}}
    async with serving(tmp_path, model, num_rounds=2, min_clients=9, settings=settings, sections=sections) as server:
        clients = [WireClient(server, name, "sst2") for name in names]
        for client in clients:
            await client.watch()
        await clients[0].until(OPENED)
        header, data = await clients[0].get_slice()
        updates = {
            client.client_id: client.update(header, full_of(data, 2**number), num_examples=number + 1)
            for number, client in enumerate(clients)
        }
        pushes = [asyncio.ensure_future(client.push(updates[client.client_id])) for client in clients[1:]]
        receipts = await asyncio.gather(*pushes)
        assert server.federation.staging.used_bytes <= 2 * sum(map(len, data.values()))
        receipts.append(await clients[0].push(updates["c0"]))
        assert {receipt.outcome for receipt in receipts} == {pb.OUTCOME_ACCEPTED}
        event = await clients[0].until(COMMITTED)
        for client in clients:
            await client.__aexit__()
    expected = sum((number + 1) * 2**number for number in range(9)) / sum(range(1, 10))
    assert model.module.encoder.weight.flatten()[[0, -1]].tolist() == pytest.approx([expected] * 2, rel=1e-6)
    assert model.module.encoder.weight.std() == 0
    assert [part.client_id for part in event.report.components[0].contributions] == names
    assert not (tmp_path / "staging").exists()


async def test_a_slow_download_gets_the_model_it_began_with_whatever_is_committed_meanwhile(tmp_path):
    """Its bytes are not copied, and not used for anything else before it ends."""
    model = tiny_model("sst2", encoder=WideEncoder(8_000_000))
    async with serving(tmp_path, model, num_rounds=5) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        before = model_bytes(model)
        slow = client.stub.GetSlice(pb.GetSliceRequest(task="sst2"))
        messages = [await slow.read() for _ in range(2)]
        for round_ in (1, 2, 3):
            header, data = await client.get_slice(round=round_)
            await client.push(client.update(header, full_of(data, round_)))
            await client.until(OPENED, round_ + 1)
        while (message := await slow.read()) is not pb and message:
            messages.append(message)
            if sum(len(one.chunk.data) for one in messages) == sum(map(len, before.values())):
                break
        got = dict.fromkeys(before, b"")
        for message in messages[1:]:
            got[message.chunk.scope] += message.chunk.data
        assert got == before
        assert messages[0].header.round == 1
        await eventually(lambda: model.module.encoder.weight.eq(3.0).all().item())


@pytest.mark.parametrize("num_complete", [0, 1])
async def test_an_upload_that_waits_for_room_when_its_round_closes_is_told_so(num_complete, tmp_path):
    """Whether the round closes with what is there, or is abandoned with nothing."""
    model = tiny_model("sst2")
    names, settings = "abcd"[: 3 + num_complete], {"staging_memory_mb": 0}
    times = {"deadline_s": 0.5, "transfer_timeout_s": 2.0}
    async with serving(tmp_path, model, min_clients=len(names), settings=settings, **times) as server:
        clients = [WireClient(server, name, "sst2") for name in names]
        for client in clients:
            await client.watch()
        await clients[0].until(OPENED)
        header, data = await clients[0].get_slice()
        for client in clients[3:]:
            await client.push(client.update(header, data))

        async def header_alone(client):
            yield client.update(header, data)[0]
            await asyncio.Event().wait()

        calls = [
            asyncio.ensure_future(_outcome(client.stub.PushUpdate(header_alone(client)))) for client in clients[:3]
        ]
        await eventually(lambda: server.federation.staging.num_waiting == 1)
        outcomes = await asyncio.gather(*calls)
        await eventually(lambda: server.federation.staging.used_bytes == 0)
        assert server.federation.staging.num_waiting == 0
        for client in clients:
            await client.__aexit__()
    assert sorted(code for code, _ in outcomes) == ["ABORTED", "UNAVAILABLE", "UNAVAILABLE"]
    assert any("round 1 has closed" in text for _, text in outcomes)


async def _outcome(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details()
    return "OK", ""
