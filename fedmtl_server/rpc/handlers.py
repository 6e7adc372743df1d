"""gRPC's four kinds of handlers as one, for interceptors, and what FedMTL needs of a call's context."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import NoReturn, Protocol, TypeAlias, TypeVar, cast

import grpc

Q = TypeVar("Q")
"""A request, as the handler's deserializer makes it."""
R = TypeVar("R")
"""A response, as the handler's serializer takes it."""

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


class CallContext(Protocol):
    """A call's context, gRPC's own (`grpc.aio.ServicerContext`) or one around it."""

    def peer(self) -> str: ...
    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...
    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...
    def code(self) -> grpc.StatusCode | int | None: ...
    async def send_initial_metadata(self, initial_metadata: Metadata, /) -> None: ...
    async def write(self, message: object, /) -> None: ...
    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn: ...


Handler: TypeAlias = "grpc.RpcMethodHandler[Q, R]"  # generic in its stubs alone
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Q, R] | None]]"
Behaviour: TypeAlias = "Callable[[Q | AsyncIterator[Q], CallContext], Awaitable[R | None]]"
"""A handler of any kind as one coroutine function.

It is called with the request, or with an iterator over the requests where the handler takes a stream. It returns the
response, or None where the handler answers with a stream: its responses are written to the context.
"""


def behaviour_of(handler: Handler[Q, R]) -> Behaviour[Q, R]:
    """What a handler does, in the task of the call, where it can be cancelled."""
    if handler.request_streaming:
        method: object = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        method = handler.unary_stream if handler.response_streaming else handler.unary_unary
    if not inspect.isasyncgenfunction(method):
        return cast("Behaviour[Q, R]", method)
    generate = cast("Callable[[Q | AsyncIterator[Q], CallContext], AsyncGenerator[R, None]]", method)

    async def write_all(request: Q | AsyncIterator[Q], context: CallContext) -> None:
        async with aclosing(generate(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all


def with_behaviour(handler: Handler[Q, R], behaviour: Behaviour[Q, R]) -> Handler[Q, R]:
    """A handler of the same kind, with the same messages, that does something else."""
    make = _MAKE[handler.request_streaming, handler.response_streaming]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


_MAKE = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
