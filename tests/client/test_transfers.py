"""Uploads and downloads over slow links, and past gateways that end them."""

import asyncio
import contextlib
from dataclasses import replace

import grpc
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from structlog.testing import capture_logs

from fedmtl_client.api import FederationApi
from fedmtl_client.transfers import Attempts, ChunkSize
from fedmtl_client.uploads import Upload
from fedmtl_core.errors import (
    IntermediaryError,
    LimitExceededError,
    RequestError,
    ServerFaultError,
    StaleRoundError,
    TransferCutError,
    UnavailableError,
)
from fedmtl_core.wire.chunks import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.updates import Update
from tests.faults.proxy import Faults, FaultyProxy
from tests.relay import Cuts, Relay
from tests.support import WideEncoder, serving, tiny_model, watching

CODE = grpc.StatusCode
MIB = 2**20


@contextlib.asynccontextmanager
async def open_round(tmp_path, num_numbers=1_500_000, **rounds):
    """A server in whose first round the client `a` is expected, and an update for it."""
    model = tiny_model("sst2", encoder=WideEncoder(num_numbers))
    async with serving(tmp_path, model, num_rounds=2, **rounds) as server, watching(server, a="sst2") as clients:
        await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED)
        update = Update(
            run_id=server.federation.run_id,
            client_id="a",
            task="sst2",
            base_round=1,
            update_id="u",
            kind="parameters",
            num_examples=1,
        )
        trained = {scope: component.clone() for scope, component in model.components.items()}
        for number, component in enumerate(trained.values()):
            component.buffer.view(torch.float32).add_(0.25 + number)
        yield server, clients["a"], update, trained


async def pushed(address, update, trained, reconnect_s=30.0):
    """The receipt of an update."""
    encoded = [EncodedComponent.exact(component) for component in trained.values()]
    with contextlib.closing(FederationApi(address, client_id="a", task="sst2", reconnect_s=reconnect_s)) as api:
        return await asyncio.to_thread(api.push_update, update, encoded)


def sizes(logs):
    return [line["num_bytes"] for line in logs if line["event"] == "chunks.smaller"]


async def test_an_upload_over_a_link_too_slow_for_a_chunk_ends(tmp_path):
    """A chunk of 2 MiB takes a second, and a server that hears nothing for half of it gives the upload up."""
    async with open_round(tmp_path, transfer_timeout_s=0.5) as (server, client, update, trained):
        with FaultyProxy(server.address, Faults(bytes_per_s=2 * MIB)) as proxy, capture_logs() as logs:
            receipt = await pushed(proxy.address, update, trained)
        await client.until(pb.ROUND_EVENT_KIND_COMMITTED)
        assert receipt.outcome == "accepted"
        for scope, component in trained.items():
            assert torch.equal(server.federation.model.components[scope].buffer, component.buffer)
    assert sizes(logs)[0] == MAX_CHUNK_BYTES // 4


@pytest.mark.parametrize("code", [CODE.INTERNAL, CODE.UNKNOWN, CODE.CANCELLED, CODE.DEADLINE_EXCEEDED])
async def test_an_upload_that_something_in_between_ends_is_resumed(code, tmp_path):
    async with open_round(tmp_path) as (server, client, update, trained):
        async with Relay(server.address, Cuts("PushUpdate", code, after_bytes=5 * MIB, times=1)) as relay:
            receipt = await pushed(relay.address, update, trained)
        event = await client.until(pb.ROUND_EVENT_KIND_COMMITTED)
    assert receipt.outcome == "accepted"
    assert relay.calls == ["PushUpdate", "QueryUpload", "PushUpdate"]
    assert event.report.bytes_received < 6_000_040 + MAX_CHUNK_BYTES


async def test_an_upload_gets_past_a_limit_on_the_size_of_a_call(tmp_path):
    """Each call brings as much as passes, in smaller chunks if need be."""
    async with open_round(tmp_path) as (server, client, update, trained):
        async with Relay(server.address, Cuts("PushUpdate", CODE.INTERNAL, after_bytes=MIB)) as relay:
            with capture_logs() as logs:
                receipt = await pushed(relay.address, update, trained)
        await client.until(pb.ROUND_EVENT_KIND_COMMITTED)
        for scope, component in trained.items():
            assert torch.equal(server.federation.model.components[scope].buffer, component.buffer)
    assert receipt.outcome == "accepted"
    assert sizes(logs) == [MAX_CHUNK_BYTES // 4]


async def test_an_upload_that_is_cut_at_the_same_byte_three_times_ends_in_words(tmp_path):
    async with open_round(tmp_path) as (server, _, update, trained):
        async with Relay(server.address, Cuts("PushUpdate", CODE.CANCELLED, after_bytes=10_000)) as relay:
            with pytest.raises(TransferCutError) as failure:
                await pushed(relay.address, update, trained)
    assert str(failure.value).startswith(
        "the upload was cut 3 times at byte 0: does a proxy limit its size or time (nginx:"
    )
    assert str(failure.value).endswith("ended the call: CANCELLED: the gateway has had enough")
    assert relay.calls == ["PushUpdate", "QueryUpload"] * 3


async def test_a_download_that_something_in_between_ends_is_resumed(tmp_path):
    async with open_round(tmp_path) as (server, *_):
        async with Relay(server.address, Cuts("GetSlice", CODE.INTERNAL, after_bytes=5 * MIB, times=2)) as relay:
            with contextlib.closing(FederationApi(relay.address, client_id="a", task="sst2")) as api:
                slice_ = await asyncio.to_thread(api.get_slice, 1)
        for scope, component in slice_.components.items():
            assert torch.equal(server.federation.model.components[scope].buffer, component.buffer)
    assert slice_.bytes_received == 6_000_040


async def test_a_download_that_was_cut_once_outlasts_calls_that_end_before_they_begin(tmp_path):
    """Only what ends a stream that has begun says something of the link: a gateway may be restarting."""
    async with open_round(tmp_path) as (server, *_):
        async with Relay(server.address, Cuts("GetSlice", CODE.INTERNAL, after_bytes=3 * MIB, times=1)) as relay:
            with contextlib.closing(FederationApi(relay.address, client_id="a", task="sst2", reconnect_s=30.0)) as api:
                refused = iter(range(4))
                begin = api._connection.get_slice

                def get_slice(request, metadata=()):
                    if request.held and next(refused, None) is not None:
                        raise IntermediaryError("502")
                    return begin(request, metadata=metadata)

                api._connection.get_slice = get_slice
                with capture_logs() as logs:
                    slice_ = await asyncio.to_thread(api.get_slice, 1)
    assert slice_.components.keys() == server.federation.model.components.keys()
    assert next(refused, None) is None
    assert sizes(logs) == []


class OneEvent(pb_grpc.FederatedMtlServiceServicer):
    """Ends each stream of events after the first event, without a reason."""

    num_watches = 0

    async def WatchRounds(self, request, context):  # noqa: N802
        self.num_watches += 1
        yield pb.WatchRoundsResponse(kind=pb.ROUND_EVENT_KIND_WAITING)
        await context.abort(CODE.UNKNOWN, "the gateway has had enough")


async def test_streams_of_events_that_are_cut_again_and_again_are_given_up():
    server, events = grpc.aio.server(), OneEvent()
    pb_grpc.add_FederatedMtlServiceServicer_to_server(events, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        with contextlib.closing(FederationApi(address, client_id="a", task="sst2", reconnect_s=1.0)) as api:
            with pytest.raises(IntermediaryError, match=r"each stream of events .* the gateway has had enough"):
                await asyncio.to_thread(list, api.watch())
    finally:
        await server.stop(None)
    assert 2 <= events.num_watches < 50


async def test_a_download_gets_past_a_limit_on_the_size_of_a_call(tmp_path):
    async with open_round(tmp_path) as (server, *_):
        async with Relay(server.address, Cuts("GetSlice", CODE.UNKNOWN, after_bytes=MIB)) as relay:
            with (
                contextlib.closing(FederationApi(relay.address, client_id="a", task="sst2")) as api,
                capture_logs() as logs,
            ):
                slice_ = await asyncio.to_thread(api.get_slice, 1)
        for scope, component in slice_.components.items():
            assert torch.equal(server.federation.model.components[scope].buffer, component.buffer)
    assert sizes(logs) == [MAX_CHUNK_BYTES // 4]


async def test_a_download_that_is_cut_at_the_same_byte_three_times_ends_in_words(tmp_path):
    async with open_round(tmp_path) as (server, *_):
        async with Relay(server.address, Cuts("GetSlice", CODE.INTERNAL, after_bytes=10_000)) as relay:
            with contextlib.closing(FederationApi(relay.address, client_id="a", task="sst2")) as api:
                with pytest.raises(TransferCutError, match="the download was cut 3 times at byte 0"):
                    await asyncio.to_thread(api.get_slice, 1)
    assert relay.calls == ["GetSlice"] * 3


@pytest.mark.parametrize("code", [CODE.INTERNAL, CODE.UNKNOWN, CODE.CANCELLED])
async def test_another_call_that_something_in_between_ends_is_made_again(code, tmp_path):
    async with open_round(tmp_path) as (server, *_):
        async with Relay(server.address, Cuts("GetStatus", code, times=2)) as relay:
            with contextlib.closing(FederationApi(relay.address, client_id="a", task="sst2")) as api:
                status = await asyncio.to_thread(api.get_status)
    assert status.run_id == server.store.run_id
    assert relay.calls == ["GetStatus"] * 3


@pytest.mark.parametrize(
    "code", [CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED, CODE.UNIMPLEMENTED, CODE.RESOURCE_EXHAUSTED]
)
async def test_a_refusal_that_is_not_the_servers_ends_the_call_and_says_so(code, tmp_path):
    """As what gRPC makes of HTTP's 401, 403 and 404."""
    async with open_round(tmp_path) as (server, *_):
        async with Relay(server.address, Cuts("GetStatus", code)) as relay:
            with contextlib.closing(FederationApi(relay.address, client_id="a", task="sst2")) as api:
                with pytest.raises(
                    RequestError,
                    match=r"had enough \(the answer of 127\.0\.0\.1:\d+ has no FedMTL error reason",
                ) as failure:
                    await asyncio.to_thread(api.get_status)
    assert not isinstance(failure.value, UnavailableError)
    assert relay.calls == ["GetStatus"]


async def test_a_refusal_whose_status_is_lost_on_the_way_is_known_by_its_details(tmp_path):
    """HAProxy passes them on, and then resets the stream of an upload that goes on."""
    async with open_round(tmp_path) as (server, _, update, trained):
        update = replace(update, base_round=7)
        async with Relay(server.address, reset_as=CODE.CANCELLED) as relay:
            with pytest.raises(StaleRoundError, match="round 7"):
                await pushed(relay.address, update, trained)
    assert relay.calls == ["PushUpdate"]


async def test_a_fault_of_the_server_itself_ends_the_call_at_once(tmp_path, monkeypatch):
    async with open_round(tmp_path) as (server, *_):
        monkeypatch.setattr(server.federation, "status", lambda: 1 / 0)
        with contextlib.closing(FederationApi(server.address, client_id="a", task="sst2")) as api:
            with pytest.raises(ServerFaultError):
                await asyncio.to_thread(api.get_status)


@pytest.mark.parametrize(
    ("wanted", "size"), [(0, MAX_CHUNK_BYTES), (100_000, 65_536), (1, MIN_CHUNK_BYTES), (2**31, MAX_CHUNK_BYTES)]
)
async def test_a_server_cuts_a_slice_as_small_as_is_asked(wanted, size, tmp_path):
    async with open_round(tmp_path) as (_, client, *_):
        request = pb.GetSliceRequest(task="sst2", max_chunk_bytes=wanted)
        messages = [message async for message in client.stub.GetSlice(request)]
    lengths = [len(one.chunk.data) for one in messages[1:] if one.chunk.scope == "shared"]
    assert sum(lengths) == 6_000_000
    assert set(lengths[:-1]) == {size}


def test_an_upload_says_itself_how_it_travels_whatever_its_update_says():
    component = Component.pack("shared", {"encoder.weight": torch.ones(3)})
    update = Update("a", "sst2", 1, "u", "parameters", "run", compression="none")
    upload = Upload(update, [EncodedComponent.exact(component)], "zstd", ChunkSize("upload"))
    header = pb.PushUpdateRequest.FromString(upload.opening()).header
    assert (header.client_id, header.base_round, header.update_id) == ("a", 1, "u")
    assert header.compression == pb.COMPRESSION_ZSTD
    assert [(one.scope, one.num_bytes, one.start_offset) for one in header.components] == [("shared", 12, 0)]


def test_chunks_become_smaller_only_while_nothing_comes_through():
    size = ChunkSize("upload")
    attempts = Attempts(size)
    stalled = UnavailableError("no message arrived")
    for position, expected in ((10, 2**21), (10, 2**19), (20, 2**19), (20, 2**17), (20, 2**15), (20, 2**15)):
        attempts.failed(stalled, position)
        assert size.num_bytes == expected


def test_cuts_at_different_bytes_are_no_limit():
    attempts = Attempts(ChunkSize("upload"))
    for position in (1, 1, 2, 2, 3, 3):
        attempts.failed(IntermediaryError("cut"), position)
    with pytest.raises(LimitExceededError, match="the upload was cut 3 times at byte 3"):
        attempts.failed(IntermediaryError("cut"), 3)
