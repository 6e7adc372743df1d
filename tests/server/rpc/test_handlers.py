"""gRPC's four kinds of handlers behind one adapter."""

import asyncio

import grpc
import pytest

from fedmtl_server.rpc.handlers import behavior_of, with_behavior
from tests.support import aiter_of


class Written:
    """A context that keeps what is written."""

    def __init__(self):
        self.messages = []

    async def write(self, message):
        self.messages.append(message)


async def unary_unary(request, context):
    return request.upper()


async def stream_unary(requests, context):
    return "".join([request.upper() async for request in requests])


async def writes(request, context):
    for letter in request:
        await context.write(letter.upper())


async def yields(request, context):
    for letter in request:
        yield letter.upper()


async def stream_writes(requests, context):
    async for request in requests:
        await context.write(request.upper())


async def stream_yields(requests, context):
    async for request in requests:
        yield request.upper()


HANDLERS = {
    "unary_unary": grpc.unary_unary_rpc_method_handler(unary_unary, "reads", "writes"),
    "unary_stream": grpc.unary_stream_rpc_method_handler(writes, "reads", "writes"),
    "unary_stream generator": grpc.unary_stream_rpc_method_handler(yields, "reads", "writes"),
    "stream_unary": grpc.stream_unary_rpc_method_handler(stream_unary, "reads", "writes"),
    "stream_stream": grpc.stream_stream_rpc_method_handler(stream_writes, "reads", "writes"),
    "stream_stream generator": grpc.stream_stream_rpc_method_handler(stream_yields, "reads", "writes"),
}


async def outcome_of(behavior, handler):
    """What a behavior returns and writes when it is asked for "ab"."""
    context = Written()
    returned = await behavior(aiter_of("ab") if handler.request_streaming else "ab", context)
    return returned, context.messages


@pytest.mark.parametrize("kind", HANDLERS)
async def test_a_handler_of_any_kind_is_one_coroutine_function(kind):
    handler = HANDLERS[kind]
    expected = (None, ["A", "B"]) if handler.response_streaming else ("AB", [])
    assert await outcome_of(behavior_of(handler), handler) == expected


@pytest.mark.parametrize("kind", HANDLERS)
async def test_another_behavior_keeps_a_handlers_kind_and_its_messages(kind):
    handler, seen = HANDLERS[kind], []
    serve = behavior_of(handler)

    async def around(request, context):
        seen.append(kind)
        return await serve(request, context)

    other = with_behavior(handler, around)
    for name in ("request_streaming", "response_streaming", "request_deserializer", "response_serializer"):
        assert getattr(other, name) == getattr(handler, name)
    assert await outcome_of(behavior_of(other), other) == await outcome_of(serve, handler)
    assert seen == [kind]


async def test_a_generator_is_closed_when_its_call_is_cancelled():
    closed, begun = [], asyncio.Event()

    async def endless(request, context):
        try:
            while True:
                yield request
                begun.set()
                await asyncio.sleep(60)
        finally:
            closed.append(request)

    serve = behavior_of(grpc.unary_stream_rpc_method_handler(endless))
    call = asyncio.create_task(serve("a", Written()))
    await begun.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert closed == ["a"]
