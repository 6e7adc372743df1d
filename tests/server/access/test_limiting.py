"""Every limit over real connections: what is refused and how, that nothing changes by it, and who isn't concerned."""

import asyncio
import contextlib
import socket
import time

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from benchmarks.frames import DATA, WINDOW_UPDATE, Connection, frame, message_prefix
from fedmtl_client.api import FederationApi
from fedmtl_client.connection import ConnectionSettings
from fedmtl_core.errors import LimitExceededError
from fedmtl_core.wire.details import read_details
from fedmtl_core.wire.updates import Update
from fedmtl_server.access import limiting
from fedmtl_server.rounds.transitions import Phase
from fedmtl_server.rpc.caller_context import current_caller
from fedmtl_server.rpc.sockets import hang_up
from tests.support import WideEncoder, WireClient, aiter_of, eventually, model_bytes, reports_of, serving, tiny_model

CODE = grpc.StatusCode
OPENED, COMMITTED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_COMMITTED
METHOD = "/fedmtl.v1.FederatedMtlService/"


class ByMetadata(grpc.aio.ServerInterceptor):
    """Takes a caller's word for its identity, where it gives one."""

    async def intercept_service(self, continuation, handler_call_details):
        for key, value in handler_call_details.invocation_metadata:
            if key == "identity":
                current_caller.set(value)
        return await continuation(handler_call_details)


@contextlib.asynccontextmanager
async def limited(tmp_path, model=None, *, rounds=None, num_rounds=3, **limits):
    """A server with some limits, and the interceptors that keep them."""
    made = []

    def keep(limits, timeout_s, interceptors=()):
        made.extend(original(limits, timeout_s, [*interceptors, ByMetadata()]))
        return made

    original = limiting.with_limits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedmtl_server.server.with_limits", keep)
        model = model or tiny_model("sst2")
        sections = {"limits": limits}
        async with serving(tmp_path, model, num_rounds=num_rounds, sections=sections, **(rounds or {})) as server:
            server.connection_limits, server.caller_limits = made[0], made[-1]
            yield server


def own_connection(server, client_id="a", task="sst2", **options):
    """A client that shares its connection with no other of this process."""
    client = WireClient(server, client_id, task)
    options = [("grpc.use_local_subchannel_pool", 1), *options.items()]
    client._channel = grpc.aio.insecure_channel(server.address, options=options)
    client.stub = type(client.stub)(client._channel)
    return client


async def refusal_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        async with asyncio.timeout(20):
            await call
    return refusal.value


def _refusal_of_upload(address, messages):
    """gRPC's own asyncio client forgets what a call ended with if it was sending just then; this one doesn't."""
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refusal:
        pb_grpc.FederatedMtlServiceStub(channel).PushUpdate(iter(messages), timeout=20)
    return refusal.value


def asks_to_wait(error, text):
    """Whether a call was refused for a limit that will pass."""
    assert error.code() is CODE.RESOURCE_EXHAUSTED, error.details()
    assert text in error.details()
    seconds = read_details(error.trailing_metadata()).retry_after_s
    assert seconds is not None
    assert 0 < seconds <= 5
    return seconds


# Calls a second.


async def test_calls_beyond_the_pace_are_refused_and_let_through_when_it_was_told(tmp_path):
    async with limited(tmp_path, requests_per_s=4, request_burst=3) as server:
        async with own_connection(server) as client, own_connection(server) as other:
            for _ in range(3):
                await client.stub.GetStatus(pb.GetStatusRequest())
            refusal = await refusal_of(client.stub.GetStatus(pb.GetStatusRequest()))
            seconds = asks_to_wait(refusal, "calls: at most 4 a second are allowed on a connection, and 3 at once")
            assert seconds <= 0.25
            await other.stub.GetStatus(pb.GetStatusRequest())
            await asyncio.sleep(seconds)
            await client.stub.GetStatus(pb.GetStatusRequest())


async def test_a_call_refused_for_its_pace_changes_nothing(tmp_path):
    model = tiny_model("sst2")
    before = model_bytes(model)
    async with limited(tmp_path, model, requests_per_s=0.001, request_burst=3) as server:
        async with own_connection(server) as client, own_connection(server, "b") as other:
            await client.watch()
            header, data = await client.get_slice()
            await client.stub.GetStatus(pb.GetStatusRequest())
            asks = await refusal_of(client.push(client.update(header, data)))
            assert asks.code() is CODE.RESOURCE_EXHAUSTED
            asks = await refusal_of(client.stub.WatchRounds(pb.WatchRoundsRequest(client_id="a", task="sst2")).read())
            assert asks.code() is CODE.RESOURCE_EXHAUSTED
            status = await other.stub.GetStatus(pb.GetStatusRequest())
            assert [(one.client_id, one.connected, one.reported) for one in status.clients] == [("a", True, False)]
            assert server.federation.staging.used_bytes == 0
            assert model_bytes(model) == before


async def test_fedmtls_own_client_comes_back_when_it_is_told_and_is_never_hung_up_on(tmp_path):
    async with limited(tmp_path, requests_per_s=20, request_burst=1, refusals=3) as server:
        api = FederationApi(
            server.address,
            client_id="a",
            task="sst2",
            connection=ConnectionSettings(channel_options={"grpc.use_local_subchannel_pool": 1}),
        )
        with capture_logs() as logs:
            began = time.monotonic()
            for _ in range(8):
                await asyncio.to_thread(api.get_status)
        api.close()
    assert time.monotonic() - began >= 7 / 20
    assert any(line["event"] == "server.away" for line in logs)
    assert not any(line["event"] == "connection.closed" for line in logs)


async def test_who_goes_on_is_hung_up_on_and_comes_back_to_little(tmp_path):
    limits = {"requests_per_s": 0.01, "request_burst": 20, "refusals": 5}
    async with limited(tmp_path, **limits) as server, own_connection(server) as other:
        await other.watch()
        with capture_logs() as logs:
            async with Connection(server.address) as hostile:
                for _ in range(40):
                    hostile.open(METHOD + "GetStatus")
                async with asyncio.timeout(5):
                    await hostile.closed.wait()
            async with Connection(server.address) as again:
                first = again.open(METHOD + "NoSuchCall", end_stream=True)
                await eventually(lambda: first in again.ended)
                assert not again.closed.is_set()
                again.open(METHOD + "NoSuchCall", end_stream=True)
                async with asyncio.timeout(5):
                    await again.closed.wait()
        assert [line["event"] for line in logs if line["event"] == "connection.closed"] == ["connection.closed"] * 2
        assert server.federation.status().clients[0].connected  # another's connection is none of its business
        await other.stub.GetStatus(pb.GetStatusRequest())


async def test_refusals_do_not_flood_the_log(tmp_path):
    async with limited(tmp_path, requests_per_s=0.01, request_burst=1, refusals=10_000) as server:
        async with own_connection(server) as client:
            with capture_logs() as logs:
                for _ in range(100):
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await client.stub.GetStatus(pb.GetStatusRequest())
    assert 0 < len([line for line in logs if line["event"] == "call.limited"]) <= 40


async def test_where_callers_are_known_their_pace_is_theirs_over_all_connections(tmp_path):
    async with limited(tmp_path, requests_per_s=0.001, request_burst=4) as server:
        async with own_connection(server) as one, own_connection(server) as other:
            for client in (one, other, one, other):
                await client.stub.GetStatus(pb.GetStatusRequest(), metadata=(("identity", "a"),))
            refusal = await refusal_of(one.stub.GetStatus(pb.GetStatusRequest(), metadata=(("identity", "a"),)))
            assert "calls: at most 0.001 a second are allowed for a client, and 4 at once" in refusal.details()
            await one.stub.GetStatus(pb.GetStatusRequest(), metadata=(("identity", "b"),))


# Sizes.


async def test_a_message_that_is_too_large_is_refused(tmp_path):
    async with limited(tmp_path) as server, own_connection(server) as client:
        await client.watch()
        header, data = await client.get_slice()
        messages = client.update(header, data)
        messages[1].chunk.data = bytes(2**21 + 2**17)
        refusal = await asyncio.to_thread(_refusal_of_upload, server.address, messages)
        assert refusal.code() is CODE.RESOURCE_EXHAUSTED
        assert read_details(refusal.trailing_metadata()).retry_after_s is None  # it would be no smaller the next time
        await eventually(lambda: server.federation.staging.used_bytes == 0 or not server.caller_limits.uploads.num_held)
        assert (await client.push(client.update(header, data))).outcome == pb.OUTCOME_ACCEPTED


async def test_what_a_message_only_claims_to_have_takes_no_memory(tmp_path):
    """A gigabyte is announced: it is refused when the announcement is there."""
    async with limited(tmp_path) as server, Connection(server.address) as hostile:
        stream = hostile.open(METHOD + "PushUpdate")
        hostile.write(frame(DATA, 0, stream, message_prefix(2**30)))
        await eventually(lambda: stream in hostile.ended)


@pytest.mark.parametrize("rpc", ["GetSlice", "PushUpdate"])
async def test_a_request_or_header_that_is_too_large_is_refused(rpc, tmp_path):
    async with limited(tmp_path, request_bytes=2000) as server, own_connection(server) as client:
        if rpc == "GetSlice":
            held = [pb.HeldComponent(scope="shared", digest=bytes(32))] * 100
            call = client.stub.GetSlice(pb.GetSliceRequest(task="sst2", held=held)).read()
        else:
            header = pb.UpdateHeader(run_id="x" * 4000)
            call = client.stub.PushUpdate(aiter_of([pb.PushUpdateRequest(header=header)]))
        refusal = await refusal_of(call)
    assert refusal.code() is CODE.RESOURCE_EXHAUSTED
    assert "request: at most 2000 bytes are allowed, got" in refusal.details()
    assert read_details(refusal.trailing_metadata()).retry_after_s is None


async def test_metadata_that_is_too_large_is_refused(tmp_path):
    async with limited(tmp_path, metadata_bytes=2000) as server, own_connection(server) as client:
        await client.stub.GetStatus(pb.GetStatusRequest(), metadata=(("x", "y" * 1000),))
        refusal = await refusal_of(client.stub.GetStatus(pb.GetStatusRequest(), metadata=(("x", "y" * 3000),)))
        assert refusal.code() is CODE.RESOURCE_EXHAUSTED
        await client.stub.GetStatus(pb.GetStatusRequest())


async def test_a_request_that_is_none_is_refused_in_words(tmp_path):
    async with limited(tmp_path) as server, own_connection(server) as client:
        call = client._channel.unary_unary(METHOD + "QueryUpload", None, None)
        refusal = await refusal_of(call(b"\xff\xff\xff"))
        assert refusal.code() is CODE.INVALID_ARGUMENT
        assert "expected a request of this call, got 3 other bytes" in refusal.details()


@pytest.mark.parametrize(("count", "text"), [(0, "expected a request, got none"), (2, "got another after it")])
async def test_a_unary_call_has_one_request(count, text, tmp_path):
    async with limited(tmp_path) as server, own_connection(server) as client:
        call = client._channel.stream_unary(METHOD + "GetStatus", None, None)
        refusal = await refusal_of(call(aiter_of([b""] * count)))
        assert refusal.code() is CODE.INVALID_ARGUMENT
        assert text in refusal.details()


# Calls that don't come on.


@pytest.mark.parametrize("rpc", ["GetStatus", "GetSlice", "WatchRounds", "PushUpdate", "QueryUpload"])
async def test_a_call_whose_request_does_not_come_is_ended(rpc, tmp_path):
    async with limited(tmp_path, request_s=0.3) as server, Connection(server.address) as hostile:
        began = time.monotonic()
        streams = [hostile.open(METHOD + rpc) for _ in range(5)]
        for stream in streams:
            hostile.write(frame(DATA, 0, stream, message_prefix(2_000_000)))
            await hostile.send(stream, bytes(1_000_000))
        await eventually(lambda: all(stream in hostile.ended for stream in streams))
        assert time.monotonic() - began < 8
        assert server.connection_limits.num_half_open == 0
        assert b"no request arrived for 0.3 s" in b"".join(hostile.answers.values())


async def test_of_too_many_calls_without_a_request_the_connection_with_the_most_loses_its_oldest(tmp_path):
    async with limited(tmp_path, request_s=20, half_open_calls=4) as server:
        async with Connection(server.address) as hostile, Connection(server.address) as other:
            streams = [hostile.open(METHOD + "GetSlice") for _ in range(4)]
            await eventually(lambda: server.connection_limits.num_half_open == 4)
            waiting = other.open(METHOD + "GetSlice")
            await eventually(lambda: streams[0] in hostile.ended)
            assert server.connection_limits.num_half_open == 4
            assert b"calls without a request: the server's limit is reached" in b"".join(hostile.answers.values())
            assert waiting not in other.ended
            async with own_connection(server) as client:
                assert (await client.get_slice())[1]


async def test_an_upload_that_takes_too_long_in_all_is_ended_and_can_go_on(tmp_path):
    """It sends something every now and then, so that it never stalls."""
    async with limited(tmp_path, upload_s=0.5) as server, own_connection(server) as client:
        await client.watch()
        await client.until(OPENED, 1)
        header, data = await client.get_slice()
        messages = client.update(header, data)
        pieces = [messages[0], *_pieces(messages[1].chunk, 4)]

        async def dribble():
            for piece in pieces:
                yield piece
                await asyncio.sleep(0.05)

        refusal = await refusal_of(client.stub.PushUpdate(dribble()))
        asks_to_wait(refusal, "the upload took longer than 0.5 s")
        query = pb.QueryUploadRequest(client_id="a", update_id=messages[0].header.update_id)
        (shared, _) = (await client.stub.QueryUpload(query)).components
        assert 0 < shared.num_bytes < 80
        messages[0].header.components[0].start_offset = shared.num_bytes
        rest = _pieces(messages[1].chunk, 4)[shared.num_bytes // 4 :]
        assert (await client.push([messages[0], *rest, *messages[2:]])).outcome == pb.OUTCOME_ACCEPTED


def _pieces(chunk, size):
    from google_crc32c import value

    return [
        pb.PushUpdateRequest(chunk=pb.Chunk(scope=chunk.scope, offset=start, data=part, crc32c=value(part)))
        for start in range(0, len(chunk.data), size)
        for part in [chunk.data[start : start + size]]
    ]


async def test_a_download_that_is_never_read_is_ended_with_its_connection(tmp_path):
    """Its status can't be said: it would wait behind what isn't read, and so would the memory."""
    model = tiny_model("sst2", encoder=WideEncoder(1_500_000))
    async with limited(tmp_path, model, rounds={"transfer_timeout_s": 0.5}) as server:
        async with own_connection(server) as client:
            await client.watch()
            async with Connection(server.address, window=1000) as hostile:
                hostile.call(METHOD + "GetSlice", pb.GetSliceRequest(task="sst2").SerializeToString())
                with capture_logs() as logs:
                    async with asyncio.timeout(10):
                        await hostile.closed.wait()
            await eventually(lambda: server.caller_limits.downloads.num_held == 0)
            assert server.federation.status().clients[0].connected
            assert len((await client.get_slice())[1]["shared"]) == 6_000_000
    assert [line["reason"] for line in logs if line["event"] == "connection.closed"] == [
        "the client doesn't read the status of a call"
    ]


async def test_events_that_are_never_read_are_ended_with_their_connection(tmp_path):
    async with limited(tmp_path, rounds={"transfer_timeout_s": 0.3}) as server:
        async with Connection(server.address, window=0) as hostile:
            hostile.call(METHOD + "WatchRounds", b"")
            await eventually(lambda: server.caller_limits.observers.num_held == 1)
            async with asyncio.timeout(10):
                await hostile.closed.wait()
        await eventually(lambda: server.caller_limits.observers.num_held == 0)
        await eventually(lambda: len(server.federation._driver.audience) == 0)


async def read_late(hostile, rpc, request, ended):
    """Read nothing of a call until the server has given it up, as the log says, and then its status.

    Returns:
        The status, as it came, and by event the codes in the log.
    """
    with capture_logs() as logs:
        stream = hostile.call(METHOD + rpc, request.SerializeToString())
        await eventually(lambda: any(line["event"] == ended for line in logs))
        for number in (0, stream):
            hostile.write(frame(WINDOW_UPDATE, 0, number, (2**30).to_bytes(4, "big")))
        await eventually(lambda: stream in hostile.ended)
    return hostile.answers[stream], {line["event"]: line["code"] for line in logs}


async def test_a_download_that_is_not_read_in_time_is_unavailable_and_counts_as_no_refusal(tmp_path):
    model = tiny_model("sst2", encoder=WideEncoder(1_500_000))
    limits = {"requests_per_s": 0.001, "refusals": 1}
    async with limited(tmp_path, model, rounds={"transfer_timeout_s": 0.3}, **limits) as server:
        async with Connection(server.address, window=1000) as hostile:
            for _ in range(3):
                status, codes = await read_late(hostile, "GetSlice", pb.GetSliceRequest(task="sst2"), "slice.abandoned")
                assert b"the client read no message for 0.3 s; get the slice again" in status
                assert codes == {"slice.abandoned": "UNAVAILABLE"}
            assert not hostile.closed.is_set()


async def test_an_event_that_is_not_read_in_time_is_past_a_limit_and_counts_as_one_refusal(tmp_path):
    limits = {"requests_per_s": 0.001, "refusals": 2}
    async with limited(tmp_path, rounds={"transfer_timeout_s": 0.3}, **limits) as server:
        async with Connection(server.address, window=0) as hostile:
            for _ in range(2):
                status, codes = await read_late(hostile, "WatchRounds", pb.WatchRoundsRequest(), "watch.ended")
                assert b"the client read no message for 0.3 s" in status
                assert b"again" not in status
                assert codes == {"watch.ended": "RESOURCE_EXHAUSTED", "call.limited": "RESOURCE_EXHAUSTED"}
            with capture_logs() as logs:
                stream = hostile.call(METHOD + "WatchRounds", b"")
                await eventually(lambda: any(line["event"] == "watch.ended" for line in logs))
                hostile.write(frame(WINDOW_UPDATE, 0, stream, (2**30).to_bytes(4, "big")))
                async with asyncio.timeout(5):  # the third is one too many
                    await hostile.closed.wait()
            reasons = [line["reason"] for line in logs if line["event"] == "connection.closed"]
            assert reasons == ["too many of its calls were refused"]


# How many at once.


def unread(client, **fields):
    """A download that begins and isn't read any further."""
    return client.stub.GetSlice(pb.GetSliceRequest(task="sst2", **fields))


async def test_downloads_are_limited_for_each_client(tmp_path):
    model = tiny_model("sst2", encoder=WideEncoder(2_000_000))
    options = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 65_536}  # no reading ahead
    async with limited(tmp_path, model, downloads_per_client=2) as server:
        async with own_connection(server, **options) as client:
            calls = [unread(client, client_id="a") for _ in range(2)]
            for call in calls:
                await call.read()
            asks_to_wait(await refusal_of(unread(client, client_id="a").read()), "downloads: at most 2 at once for a")
            assert len((await client.get_slice(client_id="b"))[1]["shared"]) == 8_000_000
            calls[0].cancel()
            await eventually(lambda: server.caller_limits.downloads.num_held == 1)
            assert len((await client.get_slice(client_id="a"))[1]["shared"]) == 8_000_000
            calls[1].cancel()


async def test_where_callers_are_known_their_downloads_are_theirs_over_all_connections(tmp_path):
    model = tiny_model("sst2", encoder=WideEncoder(2_000_000))
    options = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 65_536}
    async with limited(tmp_path, model, downloads_per_client=1) as server:
        async with own_connection(server, **options) as one, own_connection(server, **options) as other:
            call = one.stub.GetSlice(pb.GetSliceRequest(task="sst2", client_id="x"), metadata=(("identity", "a"),))
            await call.read()
            again = other.stub.GetSlice(pb.GetSliceRequest(task="sst2", client_id="y"), metadata=(("identity", "a"),))
            asks_to_wait(await refusal_of(again.read()), "downloads: at most 1 at once for a client")
            await other.stub.GetSlice(pb.GetSliceRequest(task="sst2"), metadata=(("identity", "b"),)).read()
            call.cancel()


async def test_of_too_many_downloads_in_all_the_fast_ones_get_theirs(tmp_path):
    """Four that don't read take all places, from as many connections; others wait no longer than `stall_s` for one."""
    model = tiny_model("sst2", encoder=WideEncoder(2_000_000))
    async with limited(tmp_path, model, downloads=4, stall_s=0.5) as server, contextlib.AsyncExitStack() as stack:
        request = pb.GetSliceRequest(task="sst2").SerializeToString()
        for _ in range(4):
            hostile = await stack.enter_async_context(Connection(server.address, window=1000))
            hostile.call(METHOD + "GetSlice", request)
        await eventually(lambda: server.caller_limits.downloads.num_held == 4)
        clients = [await stack.enter_async_context(own_connection(server, f"c{number}")) for number in range(6)]
        began = time.monotonic()
        slices = await asyncio.gather(*(client.get_slice() for client in clients))
        assert time.monotonic() - began < 8
        assert {len(data["shared"]) for _, data in slices} == {8_000_000}


async def test_a_connection_with_many_downloads_gives_way_to_another_at_once(tmp_path):
    model = tiny_model("sst2", encoder=WideEncoder(2_000_000))
    async with limited(tmp_path, model, downloads=3, stall_s=60) as server:
        async with Connection(server.address, window=1000) as hostile, own_connection(server) as client:
            request = pb.GetSliceRequest(task="sst2").SerializeToString()
            for _ in range(3):
                hostile.call(METHOD + "GetSlice", request)
            await eventually(lambda: server.caller_limits.downloads.num_held == 3)
            async with asyncio.timeout(5):
                assert len((await client.get_slice())[1]["shared"]) == 8_000_000


def waiting_upload(client, header, data):
    """An upload of which only the header comes."""

    async def header_alone():
        yield client.update(header, data)[0]
        await asyncio.Event().wait()

    return client.stub.PushUpdate(header_alone())


async def test_uploads_are_limited_in_all_and_one_refused_leaves_nothing(tmp_path):
    async with limited(tmp_path, uploads=1) as server:
        async with own_connection(server, "a") as first, own_connection(server, "b") as second:
            await first.watch()
            await second.watch()
            header, data = await first.get_slice()
            call = waiting_upload(first, header, data)
            await eventually(lambda: server.federation.staging.used_bytes > 0)
            staged = server.federation.staging.used_bytes
            refusal = await refusal_of(second.push(second.update(header, data)))
            asks_to_wait(refusal, "uploads: the server's limit is reached")
            assert server.federation.staging.used_bytes == staged
            assert server.federation.stats.num_refused == 0
            call.cancel()
            await eventually(lambda: server.caller_limits.uploads.num_held == 0)
            await first.push(first.update(header, data))


async def test_uploads_are_limited_for_each_client(tmp_path):
    async with limited(tmp_path, uploads_per_client=1) as server, own_connection(server) as client:
        await client.watch()
        header, data = await client.get_slice()
        call = waiting_upload(client, header, data)
        await eventually(lambda: server.federation.staging.used_bytes > 0)
        refusal = await refusal_of(client.push(client.update(header, data)))
        asks_to_wait(refusal, "uploads: at most 1 at once for a client, it has 1 already")
        call.cancel()


async def test_event_streams_are_limited_for_each_client_and_for_observers_in_all(tmp_path):
    async with limited(tmp_path, watches_per_client=1, observers=2) as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(own_connection(server)) for _ in range(4)]
        await clients[0].watch()
        again = clients[0].stub.WatchRounds(pb.WatchRoundsRequest(client_id="a", task="sst2"))
        asks_to_wait(await refusal_of(again.read()), "event streams: at most 1 at once for a client")
        for client in clients[1:3]:
            client.observing = client.stub.WatchRounds(pb.WatchRoundsRequest())
            await client.observing.read()
        third = clients[3].stub.WatchRounds(pb.WatchRoundsRequest())
        asks_to_wait(await refusal_of(third.read()), "observers: the server's limit is reached")
        assert len(server.federation._driver.audience) == 3


async def test_clients_event_streams_are_limited_in_all(tmp_path):
    async with limited(tmp_path, watches=1) as server:
        async with own_connection(server, "a") as first, own_connection(server, "b") as second:
            await first.watch()
            asks_to_wait(await refusal_of(second.watch()), "event streams: the server's limit is reached")
            assert [one.client_id for one in server.federation.status().clients] == ["a"]


async def test_other_calls_are_limited_in_all(tmp_path):
    async with limited(tmp_path, other_calls=1) as server:
        async with own_connection(server) as first, own_connection(server) as second:
            watch = health_pb2_grpc.HealthStub(first._channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            refusal = await refusal_of(second.stub.GetStatus(pb.GetStatusRequest()))
            asks_to_wait(refusal, "other calls: the server's limit is reached")


# Connections.


async def test_further_connections_are_closed_at_once(tmp_path):
    async with limited(tmp_path, connections=3) as server, contextlib.AsyncExitStack() as stack:
        first = [await stack.enter_async_context(Connection(server.address)) for _ in range(3)]
        await eventually(lambda: all(one.max_streams for one in first))
        last = await stack.enter_async_context(Connection(server.address))
        async with asyncio.timeout(5):
            await last.closed.wait()
        assert not any(one.closed.is_set() for one in first)


async def test_a_connection_has_so_many_calls_at_once(tmp_path):
    async with limited(tmp_path, streams_per_connection=7) as server, Connection(server.address) as hostile:
        await eventually(lambda: hostile.max_streams == 7)
        streams = [hostile.open(METHOD + "PushUpdate") for _ in range(10)]
        # gRPC itself refuses the last three, before the handlers of the others have begun.
        await eventually(lambda: all(stream in hostile.ended for stream in streams[7:]))
        await eventually(lambda: server.connection_limits.num_half_open == 7)
        assert not any(stream in hostile.ended for stream in streams[:7])


async def test_a_connection_without_a_call_is_closed(tmp_path):
    async with limited(tmp_path, connection_idle_s=0.5) as server:
        async with Connection(server.address) as idle, own_connection(server) as client:
            await client.watch()
            async with asyncio.timeout(5):
                await idle.closed.wait()
            await client.get_slice()


async def test_a_connection_that_never_begins_to_speak_is_closed(tmp_path):
    async with limited(tmp_path, handshake_s=0.5) as server:
        host, _, port = server.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(5):
            while await reader.read(1000):
                pass
        writer.close()


async def test_a_connection_is_found_by_its_peer_and_closed():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, (host, port) = listening.accept()
        with client, accepted:
            assert not hang_up(f"ipv4:{host}:1")
            assert not hang_up("unix:/tmp/x")
            assert hang_up(f"ipv4:{host}:{port}")
            client.settimeout(5)
            assert client.recv(1) == b""


# What isn't concerned.


async def test_a_method_that_is_not_there_is_unimplemented_as_ever(tmp_path):
    async with limited(tmp_path) as server, own_connection(server) as client:
        refusal = await refusal_of(client._channel.unary_unary("/no.Such/Call", None, None)(b""))
        assert refusal.code() is CODE.UNIMPLEMENTED


async def test_health_and_reflection_answer_as_ever(tmp_path):
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with limited(tmp_path) as server, own_connection(server) as client:
        checked = await health_pb2_grpc.HealthStub(client._channel).Check(health_pb2.HealthCheckRequest())
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(client._channel)
        answers = [answer async for answer in stub.ServerReflectionInfo(aiter_of([asked, asked]))]
        assert [len(answer.list_services_response.service) for answer in answers] == [3, 3]


async def test_a_limit_that_will_not_pass_is_told_to_the_caller_and_not_tried_again(tmp_path):
    async with limited(tmp_path, request_bytes=1024) as server:
        api = FederationApi(server.address, client_id="a", task="sst2")
        update = Update("a", "sst2", 1, "u", "parameters", run_id="x" * 4000)
        with pytest.raises(LimitExceededError, match="at most 1024 bytes"):
            await asyncio.to_thread(api.push_update, update)
        api.close()


# All of it at once.


async def test_an_honest_round_among_hostile_clients_goes_as_if_they_were_not_there(tmp_path):
    model = tiny_model("sst2", encoder=WideEncoder(1_500_000))
    limits = {"request_s": 1.0, "stall_s": 0.3, "requests_per_s": 10, "request_burst": 50, "refusals": 10}
    limits |= {"downloads": 4, "half_open_calls": 8, "observers": 4}
    rounds = {"min_clients": 3, "transfer_timeout_s": 3.0}
    async with limited(tmp_path, model, rounds=rounds, **limits) as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(own_connection(server, f"c{number}")) for number in range(3)]
        for client in clients:
            await client.watch()
        hostile = [asyncio.create_task(attack(server.address)) for attack in (_loris, _half_open, _unread, _flood) * 2]
        await asyncio.sleep(0.2)
        for round_ in (1, 2, 3):
            await asyncio.gather(*(_take_part(client, round_) for client in clients))
        outcomes = await asyncio.gather(*hostile)
        report = reports_of(tmp_path)[2]
        assert [part.client_id for part in report.components[0].contributions] == ["c0", "c1", "c2"]
        assert all(outcomes), outcomes  # each was refused or cut
        await eventually(lambda: server.federation.staging.used_bytes == 0)
        await eventually(lambda: server.connection_limits.num_half_open == 0)
        limits = server.caller_limits
        await eventually(lambda: not limits.downloads.num_held and not limits.observers.num_held)
        assert len(server.federation._driver.audience) == 3
        assert server.federation.status().phase is Phase.OPEN


async def _take_part(client, round_):
    while True:
        event = await client.until(OPENED, round_)
        if event.in_cohort:
            break
    header, data = await client.get_slice(round=round_)
    assert (await client.push(client.update(header, data))).outcome == pb.OUTCOME_ACCEPTED
    await client.until(COMMITTED, round_)


async def _loris(address):
    """Uploads that trickle."""
    async with Connection(address) as hostile:
        streams = [hostile.open(METHOD + "PushUpdate") for _ in range(5)]
        for _ in range(30):
            for stream in streams:
                hostile.write(frame(DATA, 0, stream, b"\0"))
            await asyncio.sleep(0.1)
        return hostile.closed.is_set() or all(stream in hostile.ended for stream in streams)


async def _half_open(address):
    """Calls without a request."""
    async with Connection(address) as hostile:
        streams = [hostile.open(METHOD + rpc) for rpc in ("GetSlice", "GetStatus", "WatchRounds") * 10]
        await asyncio.sleep(3)
        return hostile.closed.is_set() or all(stream in hostile.ended for stream in streams)


async def _unread(address):
    """Downloads and events that nobody reads."""
    async with Connection(address, window=100) as hostile:
        for rpc, request in (
            ("GetSlice", pb.GetSliceRequest(task="sst2")),
            ("WatchRounds", pb.WatchRoundsRequest()),
        ) * 3:
            hostile.call(METHOD + rpc, request.SerializeToString())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15):
                await hostile.closed.wait()
        return hostile.closed.is_set()


async def _flood(address):
    """Headers, as many as there is room for."""
    async with Connection(address) as hostile:
        for _ in range(3000):
            hostile.open(METHOD + "GetStatus", {"x": "y" * 500})
            await hostile.drain()
            if hostile.closed.is_set():
                return True
        await asyncio.sleep(1)
        return hostile.closed.is_set()
