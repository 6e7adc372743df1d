"""Reads the opening message of a call, once.

This module handles every call as a stream. A unary call and a stream look the same on the wire, but gRPC would wait
forever for a unary call's request before it calls any code of the server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, NoReturn, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from fedmtl_core.errors import InvalidRequestError, MalformedStreamError
from fedmtl_server.rpc.handlers import CallContext, Handler, Q, R
from fedmtl_server.transfer.streams import OpenedStream, wait_for_hang_up

Messages: TypeAlias = "AsyncIterator[bytes | Q]"
"""A call's messages: the first as bytes, the others as the handler accepts them."""


@dataclass(frozen=True)
class OpenedCall(Generic[Q]):
    """A call whose opening message has been read."""

    request: Q | AsyncIterator[Q]
    """The argument for the handler. A stream begins with the opening message as it was read."""
    opening: Q | None
    """The opening message; None if a stream is empty or its opening message is malformed."""


def as_stream(
    handler: Handler[Q, R], behavior: Callable[[Messages[Q], CallContext], Awaitable[R | None]]
) -> Handler[Q, R]:
    """Return a handler for any number of requests. The first stays bytes, because its size is checked first.

    Args:
        handler: the handler whose messages the calls have.
        behavior: serves a call.
    """
    kinds = {False: grpc.stream_unary_rpc_method_handler, True: grpc.stream_stream_rpc_method_handler}
    is_first = True

    def deserialize(message: bytes) -> bytes | Q:
        nonlocal is_first
        if not is_first:
            return _read(handler, message)
        is_first = False
        return message

    deserializer = cast("Callable[[bytes], Q]", deserialize) if handler.request_streaming else None
    return kinds[handler.response_streaming](behavior, deserializer, handler.response_serializer)


async def first_message(handler: Handler[Q, R], messages: Messages[Q]) -> bytes | None:
    """Return the first message of a call as bytes; None for an empty stream.

    Raises:
        MalformedStreamError: the handler takes one request, but the call has none or several. Further requests would
            stay in the transport's memory.
    """
    first = cast("bytes | None", await anext(messages, None))
    if first is None:
        await wait_for_hang_up()
    if handler.request_streaming:
        return first
    if first is None:
        raise MalformedStreamError("expected a request, got none")
    if await anext(messages, None) is not None:
        raise MalformedStreamError("expected one request, got another after it")
    return first


def open_call(handler: Handler[Q, R], first: bytes | None, messages: Messages[Q]) -> OpenedCall[Q]:
    """Read the opening message.

    A stream with a malformed opening message raises the error when its handler reads the message, because the handler
    counts refused updates.

    Args:
        handler: the handler of the call.
        first: the first message as bytes.
        messages: the messages after the first.

    Raises:
        InvalidRequestError: the message is not a request of this handler.
    """
    rest = cast("AsyncIterator[Q]", messages)
    if first is None:
        return OpenedCall(rest, None)
    try:
        opening = _read(handler, first)
    except MalformedStreamError as error:
        if not handler.request_streaming:
            raise
        return OpenedCall(OpenedStream(partial(_fail, error), rest), None)
    return OpenedCall(OpenedStream(partial(_give, opening), rest) if handler.request_streaming else opening, opening)


def _read(handler: Handler[Q, R], message: bytes) -> Q:
    if handler.request_deserializer is None:
        return cast("Q", message)
    try:
        return handler.request_deserializer(message)
    except DecodeError:
        raise InvalidRequestError(f"expected a request of this call, got {len(message)} other bytes") from None


async def _give(message: Q) -> Q:
    return message


async def _fail(error: MalformedStreamError) -> NoReturn:
    raise error
