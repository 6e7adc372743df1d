"""Text of a caller's, of any length and with any characters in it, in every field that has text: the answer and the log
stay short, and nobody writes lines of their own into the log."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from google.protobuf.descriptor import FieldDescriptor
from structlog.testing import capture_logs

from tests.support import WireClient, serving, tiny_model

LONG_BYTES = 900_000
"""Nearly what a request may have (`limits.request_bytes`)."""
MOST = 1000
REQUESTS = {
    "GetSlice": pb.GetSliceRequest,
    "QueryUpload": pb.QueryUploadRequest,
    "WatchRounds": pb.WatchRoundsRequest,
    "PushUpdate": pb.PushUpdateRequest,
    "GetStatus": pb.GetStatusRequest,
}


def texts(descriptor: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all fields of a message that hold text, those of the messages within it among them."""
    for field in descriptor.fields:
        here = (*path, field.name)
        message = field.message_type
        is_map = message is not None and message.GetOptions().map_entry
        if is_map or field.type == FieldDescriptor.TYPE_STRING:
            yield here
        elif message is not None:
            yield from texts(message, here)


FIELDS = [(rpc, path) for rpc, kind in REQUESTS.items() for path in texts(kind.DESCRIPTOR)]


def put(message: Any, path: tuple[str, ...], text: str) -> None:
    """Set one field of a message to a text; where there are several of a message within it, in the first."""
    name, *rest = path
    value = getattr(message, name)
    if rest:
        if hasattr(value, "add"):
            value = value[0] if len(value) else value.add()
        put(value, tuple(rest), text)
    elif isinstance(value, str):
        setattr(message, name, text)
    elif hasattr(value, "append"):
        value.append(text)
    else:
        value[text] = 1.0


def test_every_request_with_text_is_looked_at():
    assert {rpc for rpc, _ in FIELDS} == set(REQUESTS) - {"GetStatus"}
    assert ("GetSlice", ("client_id",)) in FIELDS
    assert ("PushUpdate", ("header", "components", "tensors", "name")) in FIELDS
    assert ("PushUpdate", ("header", "received_metrics")) in FIELDS


async def call(client: WireClient, rpc: str, path: tuple[str, ...], text: str, messages: list[Any]) -> str:
    """Make a call with the long text in one field of it, and give the message that it fails with."""
    try:
        async with asyncio.timeout(20):
            await make_call(client, rpc, path, text, messages)
    except grpc.aio.AioRpcError as error:
        return str(error.details())
    return ""


async def make_call(client: WireClient, rpc: str, path: tuple[str, ...], text: str, messages: list[Any]) -> None:
    if rpc == "PushUpdate":
        put(messages[1] if path[0] == "chunk" else messages[0], path, text)
        await client.push(messages)
        return
    valid = {
        "GetSlice": pb.GetSliceRequest(task="sst2", client_id="a"),
        "QueryUpload": pb.QueryUploadRequest(client_id="a", update_id="a-1"),
        "WatchRounds": pb.WatchRoundsRequest(client_id="a", tasks=["sst2"]),
    }
    put(valid[rpc], path, text)
    answer = getattr(client.stub, rpc)(valid[rpc])
    if rpc == "QueryUpload":
        await answer
    else:
        async for _ in answer:
            pass


@pytest.mark.parametrize("text", ["x\n\x1b[31m", "\N{GRINNING FACE}"], ids=["escapes", "wide"])
@pytest.mark.parametrize(("rpc", "path"), FIELDS, ids=[f"{rpc}-{'.'.join(path)}" for rpc, path in FIELDS])
async def test_no_text_of_a_callers_is_long_in_the_log_or_the_answer(rpc, path, text, tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        await client.until(pb.ROUND_EVENT_KIND_OPENED)
        header, data = await client.get_slice()
        with capture_logs() as logs:
            long = text * (LONG_BYTES // len(text.encode()))
            answer = await call(client, rpc, path, long, client.update(header, data))
        assert len(answer) < MOST
        for line in logs:
            assert line["event"] != "rpc.failed"
            assert len(json.dumps(line)) < MOST
            assert all(text.isascii() and text.isprintable() for text in line.values() if isinstance(text, str))
        assert all(len(one.reason) < MOST and len(one.client_id) < 200 for one in server.federation.stats.refused)


async def test_a_slice_is_refused_to_what_is_no_client_id(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        for client_id in ("a" * 65, "a b", "a\n2026-01-01 12:00:00 [info] run.finished"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.get_slice(client_id=client_id)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details().startswith("client_id: expected 1 to 64 letters")
        await client.get_slice(client_id="")
        await client.get_slice(client_id="a" * 64)


async def test_metrics_under_names_of_a_clients_own_leave_a_round_s_log_readable(tmp_path):
    names = {f"{number:03}\n\x1b{'é' * 59}": 1.0 for number in range(64)}
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=2) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        header, data = await client.get_slice()
        with capture_logs() as logs:
            metrics = {"num_eval_examples": 1, "received_metrics": names, "trained_metrics": {"train_loss": 0.5}}
            await client.push(client.update(header, data, **metrics))
            await client.until(pb.ROUND_EVENT_KIND_COMMITTED)
    (line,) = [one for one in logs if one["event"] == "task.reported"]
    assert len(line["received"]) == 16
    assert all(name.isascii() and name.isprintable() for name in line["received"])
    assert line["trained"] == {"train_loss": 0.5}
