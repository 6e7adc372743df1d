"""Slices and updates in every encoding, over a real channel: what arrives, and what becomes the model."""

import asyncio
import contextlib
import threading

import pytest
import torch

from fedmtl_client.api import FederationApi
from fedmtl_client.component_cache import ComponentCache
from fedmtl_core.errors import UnavailableError
from fedmtl_core.wire.encoded import EncodedComponent, EncodedLayout
from fedmtl_core.wire.encodings import decode, encode
from fedmtl_core.wire.formats import COMPRESSIONS, ENCODINGS
from fedmtl_core.wire.updates import Update
from tests.support import OddEncoder, WideEncoder, eventually, model_bytes, serving, tiny_model


class Participant:
    """A client made of the API alone, which can do a round's transfers in any encoding."""

    def __init__(self, server, client_id="a", compression="none"):
        self.server = server
        self.api = FederationApi(
            server.address, client_id=client_id, task="sst2", reconnect_s=10, compression=compression
        )
        self.cache = ComponentCache()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def _watch(self):
        with contextlib.suppress(UnavailableError):
            list(self.api.watch())

    async def __aenter__(self):
        await eventually(lambda: self.server.federation.status().phase.value == "open")
        return self

    async def __aexit__(self, *_):
        self.api.close()
        await asyncio.to_thread(self._watching.join, 10)

    async def get(self, encoding="float32"):
        return await asyncio.to_thread(self.api.get_slice, 0, encoding=encoding, cache=self.cache)

    async def push(self, round_, deltas, encoding="float32"):
        update = Update(
            run_id=self.server.federation.run_id,
            client_id=self.api.client_id,
            task="sst2",
            base_round=round_,
            update_id=f"u{round_}",
            kind="delta",
            num_examples=1,
        )
        encoded = [
            EncodedComponent(EncodedLayout(delta.layout, encoding, len(data)), data)
            for delta in deltas
            for data in [encode(delta, encoding)]
        ]
        await asyncio.to_thread(self.api.push_update, update, encoded)
        await eventually(lambda: self.server.federation.status().round == round_ + 1)
        return [decode(one.layout.layout, encoding, one.data) for one in encoded]


def noise_like(components, seed, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    noise = [component.clone() for component in components]
    for component in noise:
        for run in component.runs():
            run.copy_(torch.randn(run.shape, generator=generator) * scale)
    return noise


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_an_update_adds_what_its_encoding_decodes_to(encoding, compression, tmp_path):
    model = tiny_model("sst2", encoder=OddEncoder())
    before = {scope: component.clone() for scope, component in model.components.items()}
    async with serving(tmp_path, model, num_rounds=2) as server, Participant(server, "a", compression) as client:
        arrived = await client.push(1, noise_like(before.values(), 1), encoding)
    for delta in arrived:
        delta.add(before[delta.scope])
        assert torch.equal(model.components[delta.scope].buffer, delta.buffer)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_slice_decodes_to_the_model_within_its_encodings_error(encoding, compression, tmp_path):
    within = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0.0, "topk": 0.0}[encoding]
    model = tiny_model("sst2", encoder=WideEncoder(2_000_000))
    async with serving(tmp_path, model) as server, Participant(server, "a", compression) as client:
        slice_ = await client.get(encoding)
        for scope, component in slice_.components.items():
            for got, expected in zip(component.runs(), model.components[scope].runs(), strict=True):
                assert ((got - expected).abs() <= within * expected.abs() + (2**-24 if within else 0)).all()
        again = await client.get(encoding)
    assert again.bytes_received == 0
    share = {"float16": 0.5, "bfloat16": 0.5}.get(encoding, 1.0)  # what needs a version before comes exact at first
    assert slice_.bytes_received == pytest.approx(share * sum(map(len, model_bytes(model).values())), rel=0.01)


@pytest.mark.parametrize(("encoding", "share"), [("int8", 0.27), ("topk", 0.11)])
async def test_differences_follow_the_model_and_lose_nothing_for_good(encoding, share, tmp_path):
    """Round by round the slice is a small difference, and what it misses comes with the next ones."""
    model = tiny_model("sst2", encoder=WideEncoder(500_000))
    total = sum(map(len, model_bytes(model).values()))
    errors = []
    async with serving(tmp_path, model, num_rounds=6) as server, Participant(server) as client:
        first = await client.get(encoding)
        assert first.bytes_received == total
        for round_ in range(1, 6):
            still = round_ > 1  # the model moves once; then it is the slices that come closer
            delta = noise_like(first.components.values(), round_, scale=0.0 if still else 0.1)
            await client.push(round_, delta)
            slice_ = await client.get(encoding)
            assert slice_.bytes_received <= share * total
            (got,) = slice_.components["shared"].runs()
            (expected,) = model.components["shared"].runs()
            errors.append(float((got - expected).square().mean().sqrt()))
            assert slice_.components["shared"].digest() != model.components["shared"].digest() or errors[-1] == 0
    assert errors[0] > 0
    assert errors[-1] < errors[0] * 0.8
    assert errors == sorted(errors, reverse=True)


async def test_one_who_missed_a_round_gets_the_version_that_the_others_hold(tmp_path):
    model = tiny_model("sst2", encoder=WideEncoder(500_000))
    async with serving(tmp_path, model, num_rounds=4) as server, Participant(server) as client:
        api = FederationApi(server.address, client_id="late", task="sst2")
        late = ComponentCache()

        def get_late():
            return asyncio.to_thread(api.get_slice, 0, encoding="int8", cache=late)

        first = await client.get("int8")
        await get_late()
        for round_ in (1, 2):  # `late` doesn't get what comes of round 1
            await client.push(round_, noise_like(first.components.values(), round_))
            follower = await client.get("int8")
        came = await get_late()
        assert came.bytes_received > 0.9 * sum(map(len, model_bytes(model).values()))
        for scope, component in follower.components.items():
            assert torch.equal(came.components[scope].buffer, component.buffer)
        await client.push(3, noise_like(first.components.values(), 3))
        follower, came = await client.get("int8"), await get_late()
        assert came.bytes_received == follower.bytes_received
        for scope, component in follower.components.items():
            assert torch.equal(came.components[scope].buffer, component.buffer)
        api.close()


async def test_a_base_that_is_not_what_it_says_is_found_out_and_fetched_anew(tmp_path):
    """A difference added to damaged bytes would go unnoticed, round after round."""
    model = tiny_model("sst2", encoder=WideEncoder(500_000))
    async with serving(tmp_path, model, num_rounds=3) as server, Participant(server) as client:
        first = await client.get("int8")
        await client.push(1, noise_like(first.components.values(), 1))
        first.components["shared"].buffer[7] ^= 1
        slice_ = await client.get("int8")
        api = FederationApi(server.address, client_id="b", task="sst2")
        clean = await asyncio.to_thread(api.get_slice, 0, encoding="int8")
        api.close()
    assert torch.equal(slice_.components["shared"].buffer, clean.components["shared"].buffer)


async def test_zstd_sends_fewer_bytes_where_they_can_be_compressed(tmp_path):
    model = tiny_model("sst2", encoder=WideEncoder(1_000_000))
    with torch.no_grad():
        model.module.encoder.weight.fill_(0.5)
    async with serving(tmp_path, model, num_rounds=2) as server, Participant(server, "a", "zstd") as client:
        slice_ = await client.get()
        await client.push(1, noise_like(slice_.components.values(), 1, scale=0.0))
    assert server.federation.last_report.bytes_sent < 100_000
    assert model.module.encoder.weight.eq(0.5).all()
