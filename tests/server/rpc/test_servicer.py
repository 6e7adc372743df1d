"""What a call is answered when it's the server that fails: a code of the contract, and never a Python message."""

import asyncio

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_core.errors import StoreError
from fedmtl_core.wire.details import read_details
from fedmtl_server.federation import Federation
from fedmtl_server.rpc.servicer import SERVICE_NAME
from tests.support import OddEncoder, WireClient, aiter_of, eventually, full_of, serving, tiny_model, watching

OPENED, COMMITTED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_COMMITTED


def away(*_):
    raise StoreError("postgresql://user@db.example: can't read: connection refused")


def broken(*_):
    raise KeyError("task:sst2")


async def test_while_the_database_is_away_an_update_is_to_come_back_and_counts_when_it_is_there_again(
    tmp_path, monkeypatch
):
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
        client = clients["a"]
        await client.until(OPENED)
        header, data = await client.get_slice()
        update = client.update(header, full_of(data, 1))
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(server.store, "has_counted", away)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.push(update)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "the run's history can't be read at the moment; send the update again"
        (line,) = [line for line in logs if line["event"] == "history.unreadable"]
        assert "connection refused" in line["reason"]
        assert (await client.push(update)).outcome == pb.OUTCOME_ACCEPTED
        assert (await client.until(COMMITTED)).report.num_refused == 1


CALLS = {
    "GetSlice": ("prepare", lambda client: client.get_slice()),
    "PushUpdate": ("receive", lambda client: client.push(client.update(pb.SliceHeader(run_id="run", round=1), {}))),
    "QueryUpload": (
        "upload_offsets",
        lambda client: client.stub.QueryUpload(pb.QueryUploadRequest(client_id="a", update_id="u")),
    ),
    "WatchRounds": ("watch", lambda client: client.watch()),
    "GetStatus": ("status", lambda client: client.stub.GetStatus(pb.GetStatusRequest())),
}


@pytest.mark.parametrize("rpc", CALLS)
async def test_what_nobody_foresaw_is_an_internal_error_to_the_client_and_a_traceback_in_the_log(
    rpc, tmp_path, monkeypatch
):
    method, call = CALLS[rpc]
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        monkeypatch.setattr(Federation, method, broken)
        monkeypatch.setattr(server.federation, "run_id", "run")
        monkeypatch.setattr("fedmtl_server.transfer.intake.components_from_header", lambda *_: ())
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(client)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "the server has failed; its log says why"
    (line,) = [line for line in logs if line["event"] == "rpc.failed"]
    assert (line["rpc"], line["log_level"], line["exc_info"]) == (rpc, "error", True)


@pytest.mark.parametrize("rpc", ["GetSlice", "QueryUpload", "WatchRounds", "GetStatus"])
async def test_bytes_that_are_no_message_are_refused(rpc, tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_stream(f"/{SERVICE_NAME}/{rpc}")(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "expected a request of this call, got 3 other bytes"


@pytest.mark.parametrize("number", [0, 1], ids=["first", "second"])
async def test_a_malformed_message_of_an_upload_is_refused_and_counted_as_a_refused_update(number, tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        await client.until(OPENED, 1)
        header, data = await client.get_slice()
        messages = [message.SerializeToString() for message in client.update(header, data)]
        messages[number] = b"\xff\xff\xff"
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
            await client._channel.stream_unary(f"/{SERVICE_NAME}/PushUpdate")(aiter_of(messages))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "expected a PushUpdateRequest, got 3 other bytes"
        assert read_details(caught.value.trailing_metadata()).reason == "MALFORMED_STREAM"
        assert [line["event"] for line in logs] == ["update.refused"]
        assert server.federation.stats.num_refused == 1


async def test_a_client_that_goes_away_in_mid_download_is_no_failure(tmp_path, caplog):
    async with serving(tmp_path, tiny_model("sst2", encoder=OddEncoder())) as server:
        with capture_logs() as logs:
            for _ in range(20):
                async with WireClient(server, "a", "sst2") as client:
                    watch = client.stub.WatchRounds(pb.WatchRoundsRequest(client_id="a", task="sst2"))
                    await watch.read()
                    call = client.stub.GetSlice(pb.GetSliceRequest(task="sst2"))
                    await call.read()
            await eventually(lambda: not server.federation.status().clients[0].connected)
            await asyncio.sleep(0.1)
    assert [line for line in logs if line["event"] == "rpc.failed"] == []
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
