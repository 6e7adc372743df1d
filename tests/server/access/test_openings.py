"""What is read of a call's opening message, and what its handler is given."""

from functools import partial

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import InvalidRequestError, MalformedStreamError
from fedmtl_core.wire.chunks import read_message
from fedmtl_server.access.openings import as_stream, first_message, open_call
from fedmtl_server.transfer import streams
from tests.support import aiter_of

QUERY = pb.QueryUploadRequest(client_id="a")
HEADER = pb.PushUpdateRequest(header=pb.UpdateHeader(client_id="a"))


async def serve(request, context):
    return request


read_upload = partial(read_message, kind=pb.PushUpdateRequest)
UNARY = grpc.unary_unary_rpc_method_handler(serve, pb.QueryUploadRequest.FromString)
UPLOAD = grpc.stream_unary_rpc_method_handler(serve, read_upload)
BYTES = grpc.stream_stream_rpc_method_handler(serve)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(streams, "HANG_UP_S", 0.0)


def opened(handler, first, rest=()):
    return open_call(handler, first, aiter_of(rest))


def test_a_unary_call_is_given_its_request_as_it_was_read():
    call = opened(UNARY, QUERY.SerializeToString())
    assert call.request == QUERY
    assert call.opening is call.request


async def test_a_stream_begins_with_the_very_message_that_was_read():
    call = opened(UPLOAD, HEADER.SerializeToString(), ["the rest"])
    messages = [message async for message in call.request]
    assert call.opening == HEADER
    assert messages[0] is call.opening
    assert messages[1:] == ["the rest"]


async def test_a_stream_of_bytes_begins_with_its_first():
    call = opened(BYTES, b"first", [b"second"])
    assert [message async for message in call.request] == [b"first", b"second"]


async def test_a_stream_without_a_message_is_its_handlers_to_refuse():
    call = opened(UPLOAD, None)
    assert call.opening is None
    assert [message async for message in call.request] == []


async def test_a_malformed_opening_message_is_its_handlers_to_refuse():
    call = opened(UPLOAD, b"\xff\xff\xff")
    assert call.opening is None
    with pytest.raises(MalformedStreamError, match="expected a PushUpdateRequest, got 3 other bytes"):
        await anext(call.request)


def test_a_request_that_is_none_is_refused_at_once():
    with pytest.raises(InvalidRequestError, match="expected a request of this call, got 3 other bytes"):
        opened(UNARY, b"\xff\xff\xff")


@pytest.mark.parametrize("response_streaming", [False, True])
def test_of_a_stream_all_messages_but_the_first_are_read_as_they_come(response_streaming):
    make = grpc.stream_stream_rpc_method_handler if response_streaming else grpc.stream_unary_rpc_method_handler
    handler = as_stream(make(serve, read_upload), serve)
    data = HEADER.SerializeToString()
    assert [handler.request_deserializer(data) for _ in range(3)] == [data, HEADER, HEADER]
    assert handler.response_streaming is response_streaming


def test_a_unary_call_is_a_stream_of_bytes_that_nobody_reads():
    handler = as_stream(UNARY, serve)
    assert handler.request_streaming
    assert handler.request_deserializer is None


@pytest.mark.parametrize(("messages", "text"), [([], "got none"), ([b"1", b"2"], "got another after it")])
async def test_a_unary_call_brings_one_request(messages, text):
    with pytest.raises(MalformedStreamError, match=text):
        await first_message(UNARY, aiter_of(messages))


async def test_a_stream_may_go_on_after_its_first_message_and_may_have_none():
    messages = aiter_of([b"1", b"2"])
    assert await first_message(UPLOAD, messages) == b"1"
    assert await anext(messages) == b"2"
    assert await first_message(UPLOAD, aiter_of([])) is None
