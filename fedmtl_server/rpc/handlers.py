"""A common form of gRPC's four kinds of handlers, for interceptors, and the context of a call."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import NoReturn, Protocol, TypeAlias, TypeVar, cast

import grpc

Q = TypeVar("Q")
"""A request, as the handler's deserializer returns it."""
R = TypeVar("R")
"""A response, as the handler's serializer accepts it."""

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


class CallContext(Protocol):
    """The context of a call: gRPC's own (`grpc.aio.ServicerContext`) or a wrapper."""

    def peer(self) -> str: ...
    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...
    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...
    def code(self) -> grpc.StatusCode | int | None: ...
    async def send_initial_metadata(self, initial_metadata: Metadata, /) -> None: ...
    async def write(self, message: object, /) -> None: ...
    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn: ...


Handler: TypeAlias = "grpc.RpcMethodHandler[Q, R]"  # generic only in its stubs
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Q, R] | None]]"
Behavior: TypeAlias = "Callable[[Q | AsyncIterator[Q], CallContext], Awaitable[R | None]]"
"""A handler of any kind as one coroutine function.

The argument is the request, or an iterator over the requests if the handler takes a stream. The result is the response,
or None if the handler answers with a stream, whose responses it writes to the context.
"""


def behavior_of(handler: Handler[Q, R]) -> Behavior[Q, R]:
    """Return a handler's behavior as one coroutine function. It runs in the task of the call and can be cancelled."""
    if handler.request_streaming:
        method: object = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        method = handler.unary_stream if handler.response_streaming else handler.unary_unary
    if not inspect.isasyncgenfunction(method):
        return cast("Behavior[Q, R]", method)
    generate = cast("Callable[[Q | AsyncIterator[Q], CallContext], AsyncGenerator[R, None]]", method)

    async def write_all(request: Q | AsyncIterator[Q], context: CallContext) -> None:
        async with aclosing(generate(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all


def with_behavior(handler: Handler[Q, R], behavior: Behavior[Q, R]) -> Handler[Q, R]:
    """Return a handler of the same kind and with the same messages, but with another behavior."""
    make = _MAKE[handler.request_streaming, handler.response_streaming]
    return make(behavior, handler.request_deserializer, handler.response_serializer)


_MAKE = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
