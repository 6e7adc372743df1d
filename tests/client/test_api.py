"""The client's calls, over real channels that break."""

import asyncio
import contextlib
import random
import threading
import time

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_client.api import FederationApi
from fedmtl_core.config import Config
from fedmtl_core.errors import InvalidRequestError, StaleRoundError, StoreError, UnavailableError, UnknownTaskError
from fedmtl_core.wire.chunks import MAX_CHUNK_BYTES
from fedmtl_core.wire.encoded import EncodedComponent, EncodedLayout
from fedmtl_core.wire.encodings import decode, encode
from fedmtl_core.wire.updates import Update
from fedmtl_server.model import MTLServerModel
from tests.support import (
    CuttingProxy,
    OddEncoder,
    WideEncoder,
    eventually,
    model_bytes,
    serving,
    tiny_model,
    update_of,
    watching,
)

PATIENT_S = 120.0
"""Several cuts within one chunk are so many attempts in vain, each with a longer wait before it."""


@contextlib.contextmanager
def api_of(address, task="sst2", reconnect_s=10.0, **options):
    api = FederationApi(address, client_id="a", task=task, reconnect_s=reconnect_s, **options)
    try:
        yield api
    finally:
        api.close()


async def test_errors_come_as_fedmtls_own(tmp_path):
    async with serving(tmp_path, tiny_model("sst2", "qqp")) as server:
        with api_of(server.address, task="cola") as api, pytest.raises(UnknownTaskError, match="expected one of sst2"):
            await asyncio.to_thread(api.get_slice, 0)
        with api_of(server.address) as api:
            with pytest.raises(StaleRoundError, match="requested for round 5"):
                await asyncio.to_thread(api.get_slice, 5)
            with pytest.raises(InvalidRequestError, match="run_id"):
                await asyncio.to_thread(api.push_update, Update("a", "sst2", 1, "u", "parameters"))


async def test_the_whole_model_can_be_had(tmp_path):
    model = tiny_model("sst2", "qqp", encoder=OddEncoder())
    async with serving(tmp_path, model) as server:
        with api_of(server.address) as api:
            whole = await asyncio.to_thread(api.get_slice, 0, all_tasks=True)
    assert {s: c.buffer.numpy().tobytes() for s, c in whole.components.items()} == model_bytes(model)


def test_a_server_that_stays_away_is_given_up_on_in_words():
    with api_of("127.0.0.1:1", reconnect_s=1) as api, capture_logs() as logs:
        began = time.monotonic()
        words = (
            r"^no server at 127\.0\.0\.1:1 for [1-9] s \(client\.reconnect_s\): Connection refused\. Is it running, and"
        )
        with pytest.raises(UnavailableError, match=words):
            api.get_slice(0)
        assert time.monotonic() - began < 10
    assert {line["reason"] for line in logs if line["event"] == "server.away"} == {"Connection refused"}


def test_closing_ends_a_call_that_waits_for_a_server():
    with api_of("127.0.0.1:1", reconnect_s=600) as api:
        failures = []

        def call():
            try:
                api.get_slice(0)
            except UnavailableError as error:
                failures.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        api.close()
        thread.join(timeout=10)
    assert len(failures) == 1


def test_a_call_after_closing_is_an_error_in_words():
    with api_of("127.0.0.1:1") as api:
        api.close()
        with pytest.raises(UnavailableError, match="the connection is closed"):
            api.get_slice(0)
        assert list(api.watch()) == []


def cuts_at_20_points(num_bytes):
    """For a transfer that goes on at the chunk in which it was cut: how much each connection carries up to its cut."""
    budgets, start = [], 0
    for point in sorted(random.Random(num_bytes).sample(range(num_bytes), 20)):
        budgets.append(point - start)
        start = point // MAX_CHUNK_BYTES * MAX_CHUNK_BYTES
    return budgets


@pytest.mark.parametrize("encoding", ["float32", "float16"])
async def test_a_download_cut_20_times_goes_on_where_it_stopped(encoding, tmp_path):
    """A chunk that has come has come for good: a cut costs the rest of the chunk it hits."""
    model = tiny_model("sst2", encoder=WideEncoder(6_000_000))
    async with serving(tmp_path, model) as server:
        with api_of(server.address) as direct:
            whole = await asyncio.to_thread(direct.get_slice, 0, encoding=encoding)
        cuts = cuts_at_20_points(whole.bytes_received)
        async with CuttingProxy(server.address, cuts) as proxy:
            with api_of(proxy.address, reconnect_s=PATIENT_S) as api:
                slice_ = await asyncio.to_thread(api.get_slice, 0, encoding=encoding)
    assert proxy.num_cut == 20
    assert _bytes(slice_) == _bytes(whole)
    if encoding == "float32":
        assert _bytes(slice_) == model_bytes(model)
    assert slice_.bytes_received == whole.bytes_received  # no chunk came whole twice


@pytest.mark.parametrize("encoding", ["float32", "int8"])
async def test_an_upload_cut_20_times_goes_on_where_it_stopped_and_counts_once(encoding, tmp_path):
    model = tiny_model("sst2", encoder=WideEncoder(6_000_000))
    before = {scope: component.clone() for scope, component in model.components.items()}
    deltas = [component.clone() for component in model.components.values()]
    encoded = [
        EncodedComponent(EncodedLayout(delta.layout, encoding, len(data)), data)
        for delta in deltas
        for data in [encode(delta, encoding)]
    ]
    total = sum(len(one.data) for one in encoded)
    async with serving(tmp_path, model, num_rounds=2) as server:
        async with CuttingProxy(server.address, cuts_at_20_points(total), upwards=True) as proxy:
            with api_of(server.address) as presence, api_of(proxy.address, reconnect_s=PATIENT_S) as api:
                watch = threading.Thread(target=lambda: list(_ignoring_errors(presence.watch())), daemon=True)
                watch.start()
                await eventually(lambda: server.federation.status().phase.value == "open")
                update = Update(
                    run_id=server.federation.run_id,
                    client_id="a",
                    task="sst2",
                    base_round=1,
                    update_id="u",
                    kind="delta",
                    num_examples=1,
                )
                receipt = await asyncio.to_thread(api.push_update, update, encoded)
                assert receipt.outcome == "accepted"
                await eventually(lambda: server.federation.last_report is not None)
            await asyncio.to_thread(watch.join, 10)
    assert proxy.num_cut == 20
    report = server.federation.last_report
    assert report.bytes_received == total  # no chunk came whole twice
    assert [part.client_id for part in report.components[0].contributions] == ["a"]
    for delta, one in zip(deltas, encoded, strict=True):  # the model plus what came through, which is itself
        expected = decode(delta.layout, encoding, one.data)
        expected.add(before[delta.scope])
        assert torch.equal(model.components[delta.scope].buffer, expected.buffer)


async def test_a_server_that_takes_no_update_is_asked_less_and_less_often_and_given_up_on(tmp_path, monkeypatch):
    """It answers, though only that it can't: its disk is full, say."""

    def away(*_):
        raise StoreError("the database is away")

    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
        await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED)
        header, data = await clients["a"].get_slice()
        monkeypatch.setattr(server.store, "has_counted", away)
        monkeypatch.setattr("fedmtl_client.patience.random.uniform", lambda low, high: high)
        update = update_of(clients["a"].update(header, data, components=[])[0].header)
        encoded = [EncodedComponent.exact(component) for component in server.federation.model.components.values()]
        with capture_logs() as logs, api_of(server.address, reconnect_s=1.0) as api, pytest.raises(UnavailableError):
            await asyncio.to_thread(api.push_update, update, encoded)
    waits = [line["next_try_s"] for line in logs if line["event"] == "server.away"]
    assert waits == sorted(waits)
    assert waits[0] < waits[-1]
    assert len(waits) < 10


async def test_an_update_gets_the_one_call_that_a_busy_client_is_given(tmp_path):
    """Asking what is staged of it first would take that call, and the update would be refused for ever."""
    limits = {"requests_per_s": 4, "request_burst": 2}
    async with (
        serving(tmp_path, tiny_model("sst2"), sections={"limits": limits}) as server,
        watching(server, a="sst2") as clients,
    ):
        await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED)
        header, data = await clients["a"].get_slice()
        update = update_of(clients["a"].update(header, data, components=[])[0].header)
        encoded = [EncodedComponent.exact(component) for component in server.federation.model.components.values()]
        with capture_logs() as logs, api_of(server.address) as api:
            for _ in range(2):
                await asyncio.to_thread(api.get_status)
            receipt = await asyncio.to_thread(api.push_update, update, encoded)
    assert receipt.outcome == "accepted"
    assert "at most 4 a second" in "".join(line["reason"] for line in logs if line["event"] == "server.away")


async def test_damaged_bytes_are_fetched_again(tmp_path, monkeypatch):
    """A checksum that fails once, as after a flipped bit, costs another attempt and nothing else."""
    import google_crc32c

    model = tiny_model("sst2")
    real, seen = google_crc32c.value, []

    def value(data):
        """The first time the server asks, then the client."""
        seen.extend([data] if len(data) == 80 else [])
        return real(data) ^ (len(data) == 80 and len(seen) == 2)

    async with serving(tmp_path, model) as server:
        monkeypatch.setattr("fedmtl_core.wire.chunks.google_crc32c.value", value)
        with api_of(server.address) as api:
            slice_ = await asyncio.to_thread(api.get_slice, 0)
    assert len(seen) == 3
    assert torch.equal(slice_.components["shared"].buffer, model.components["shared"].buffer)


async def test_watching_survives_a_server_that_goes_and_comes_back(tmp_path):
    recorded = []
    async with serving(tmp_path / "1", tiny_model("sst2", "qqp")) as server:
        port = int(server.address.rpartition(":")[2])
        api = FederationApi(server.address, client_id="a", task="sst2", reconnect_s=30)

        def watch():
            recorded.extend(_ignoring_errors(api.watch()))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        await eventually(lambda: len(recorded) == 1)
        first_run = recorded[0].run_id
    async with serving(tmp_path / "2", tiny_model("sst2", "qqp"), port=port) as server:
        await eventually(lambda: len(recorded) == 2)
        assert recorded[1].run_id != first_run
        assert [client.client_id for client in server.federation.status().clients] == ["a"]
    api.close()
    await asyncio.to_thread(thread.join, 10)


def _bytes(slice_):
    return {scope: component.buffer.numpy().tobytes() for scope, component in slice_.components.items()}


def _ignoring_errors(events):
    with contextlib.suppress(UnavailableError):
        yield from events


async def test_a_base_is_described_with_or_without_a_slice_and_not_downloaded(tmp_path):
    given = {"model": {"server_model": "builtin:toy", "adapters": {"rank": 2}}, "tasks": {"sst2": {}}}
    model = MTLServerModel.from_config(Config.model_validate(given))
    async with serving(tmp_path, model, sections=given) as server:
        with api_of(server.address) as api:
            slice_ = await asyncio.to_thread(api.get_slice, 0)
            described = [await asyncio.to_thread(api.describe_base, one) for one in (None, slice_)]
    base = model.base["frozen"]
    digests = dict(zip(base.views(), base.tensor_digests(), strict=True))
    for one in described:
        assert one.digest == slice_.base_digest == base.digest()
        assert one.tensors == digests
        assert one.num_bytes == base.layout.num_bytes


async def test_a_run_without_adapters_has_no_base_to_describe(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server:
        with api_of(server.address) as api, pytest.raises(InvalidRequestError, match="so it has no base"):
            await asyncio.to_thread(api.describe_base)
