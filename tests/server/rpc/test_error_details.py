"""What google.rpc details callers get over a real channel, whoever refuses them: the servicer, the limits, the gate."""

import asyncio

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from grpc_status import rpc_status

from fedmtl_client.api import FederationApi
from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.wire.details import read_details
from fedmtl_server.rpc import servicer
from tests.support import WireClient, serving, tiny_model, update_of, watching

CODE = grpc.StatusCode


def header(messages):
    return messages[0].header


def without_examples(messages):
    header(messages).num_examples = 0


def with_a_wrong_shape(messages):
    tensor = header(messages).components[0].tensors[1]
    del tensor.shape[:]
    tensor.shape.extend([2, 2])


def with_an_unknown_type(messages):
    header(messages).components[1].tensors[0].dtype = 99


def with_a_wrong_size(messages):
    header(messages).components[1].num_bytes += 4


def with_a_bad_name(messages):
    header(messages).client_id = "no spaces, please"


def with_too_few_components(messages):
    del header(messages).components[1]


def with_metrics_beyond_reason(messages):
    header(messages).num_eval_examples = 1
    header(messages).received_metrics["accuracy"] = 1e300


def with_metrics_of_nothing(messages):
    header(messages).num_eval_examples = 1
    header(messages).received_metrics["loss"] = float("nan")


def with_metrics_instead(messages):
    header(messages).kind = pb.UPDATE_KIND_METRICS
    del header(messages).components[:]
    del messages[1:]


def with_a_gap(messages):
    chunk = messages[1].chunk
    chunk.offset, chunk.data = 4, chunk.data[:8]


def with_a_foreign_chunk(messages):
    messages[1].chunk.scope = "task:qqp"


@pytest.mark.parametrize(
    ("spoil", "reason", "field"),
    [
        (without_examples, "INVALID_REQUEST", "header.num_examples"),
        (with_a_bad_name, "INVALID_REQUEST", "header.client_id"),
        (with_metrics_beyond_reason, "INVALID_REQUEST", "header.received_metrics"),
        (with_metrics_of_nothing, "NON_FINITE", "header.received_metrics"),
        (with_metrics_instead, "INVALID_REQUEST", "header.kind"),
        (with_a_wrong_shape, "LAYOUT_MISMATCH", "header.components[0].tensors[1].shape"),
        (with_an_unknown_type, "LAYOUT_MISMATCH", "header.components[1].tensors[0].dtype"),
        (with_a_wrong_size, "LAYOUT_MISMATCH", "header.components[1].num_bytes"),
        (with_too_few_components, "LAYOUT_MISMATCH", "header.components"),
        (with_a_gap, "MALFORMED_STREAM", "chunk.offset"),
        (with_a_foreign_chunk, "MALFORMED_STREAM", "chunk.scope"),
    ],
)
async def test_an_update_is_told_which_field_to_mend(tmp_path, spoil, reason, field):
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
        slice_, data = await clients["a"].get_slice()
        messages = clients["a"].update(slice_, data)
        spoil(messages)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await clients["a"].push(messages)
    assert caught.value.code() is CODE.INVALID_ARGUMENT, caught.value.details()
    told = read_details(caught.value.trailing_metadata())
    assert (told.reason, told.field) == (reason, field)


async def test_a_tensor_of_another_shape_is_named_by_its_place(tmp_path):
    """The shape alone is wrong, not the size of the whole: [4, 4] and [4] become [4] and [4, 4]."""
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
        slice_, data = await clients["a"].get_slice()
        messages = clients["a"].update(slice_, data)
        first, second = header(messages).components[0].tensors
        shapes = list(first.shape), list(second.shape)
        for tensor, shape in zip((first, second), reversed(shapes), strict=True):
            del tensor.shape[:]
            tensor.shape.extend(shape)
        second.offset = 16
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await clients["a"].push(messages)
    told = read_details(caught.value.trailing_metadata())
    assert told.field == "header.components[0].tensors[0].shape"
    assert told.facts == {"tensor": "encoder.dense.weight", "expected": "float32 [4, 4]", "got": "float32 [4]"}


@pytest.mark.parametrize(
    ("request_", "reason", "facts"),
    [
        ({"task": "cola"}, "UNKNOWN_TASK", {"task": "cola"}),
        ({"task": "sst2", "round": 7}, "STALE_ROUND", {"round": "1", "got": "7"}),
        ({"task": "sst2", "run_id": "other"}, "WRONG_RUN", {"got": "other"}),
    ],
)
async def test_facts_come_with_the_reason(tmp_path, request_, reason, facts):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.get_slice(**request_)
    told = read_details(caught.value.trailing_metadata())
    assert told.reason == reason
    assert facts.items() <= told.facts.items()
    assert not told.field


async def test_the_limits_and_the_gate_tell_as_much_as_the_servicer(tmp_path):
    sections = {"security": {"authentication": True}, "limits": {"request_bytes": 2000}}
    settings = {"runs_dir": str(tmp_path)}
    async with serving(tmp_path / "run", tiny_model("sst2"), settings=settings, sections=sections) as server:
        async with WireClient(server, "a", "sst2") as stranger:
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await stranger.stub.GetStatus(pb.GetStatusRequest())
            with pytest.raises(grpc.aio.AioRpcError) as large:
                await stranger.get_slice(run_id="x" * 3000)
    assert read_details(unknown.value.trailing_metadata()).reason == "UNAUTHENTICATED"
    assert read_details(large.value.trailing_metadata()).reason == "LIMIT_EXCEEDED"


async def test_a_fault_of_the_server_has_details_too(tmp_path, monkeypatch):
    def fail(status):
        raise ZeroDivisionError

    monkeypatch.setattr(servicer, "status_to_proto", fail)
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.GetStatus(pb.GetStatusRequest())
    assert caught.value.code() is CODE.INTERNAL
    assert read_details(caught.value.trailing_metadata()).reason == "SERVER_FAULT"


async def test_grpcs_own_reader_takes_the_details(tmp_path):
    """It refuses those whose message isn't the call's: here one whose text had to be cut, and isn't ASCII."""
    async with serving(tmp_path, tiny_model("sst2")) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = channel.unary_unary("/fedmtl.v1.FederatedMtlService/QueryUpload", None, None)
            request = pb.QueryUploadRequest(run_id="é" * 900).SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request)
    status = rpc_status.from_call(caught.value)
    assert status.message == caught.value.details()
    assert caught.value.details().endswith("... (900 characters)'")


async def test_the_client_raises_the_error_that_the_server_raised(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2") as clients:
        slice_, data = await clients["a"].get_slice()
        update = update_of(clients["a"].update(slice_, data)[0].header)
        api = FederationApi(server.address, client_id="a", task="sst2")
        try:
            with pytest.raises(LayoutMismatchError, match="expected the components shared") as caught:
                await asyncio.to_thread(api.push_update, update)
        finally:
            api.close()
    assert caught.value.field == "header.components"
