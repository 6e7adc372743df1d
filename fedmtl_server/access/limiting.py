"""Applies the limits to every call: interceptors around authentication and the servicer, which know nothing of them.

`ConnectionLimits` goes first. It judges a call by its connection when the headers are there, reads its first message
itself, in a given time and up to a given size, and sees to it that a call that ends does end. `CallerLimits` goes last,
where it is known who calls.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn, TypeAlias

import grpc
from cachetools import TTLCache
from fedmtl.v1 import federation_pb2 as pb
from google.protobuf.message import DecodeError

from fedmtl_core.config import LimitsConfig
from fedmtl_core.errors import InvalidRequestError, LimitExceededError, MalformedStreamError, RequestError
from fedmtl_core.logs import get_logger
from fedmtl_core.wire.chunks import Chunk, read_message
from fedmtl_server.access.limits import RETRY_S, Claim, FairPlaces, Paces, Quota, TokenBucket, Verdict
from fedmtl_server.rpc.abort import abort
from fedmtl_server.rpc.caller_context import address_of, caller_of, named_client
from fedmtl_server.rpc.sockets import hang_up

LAST_WORD_S = 1.0
"""How long a call's status may take to leave. It waits behind the bytes that the client doesn't take."""

HANG_UP_S = 0.1
"""gRPC ends the stream of a client that has gone a moment before it cancels the handler."""

FRAME_BYTES = 4 * 2**20
"""The largest HTTP/2 frame. A chunk goes in one, once its window is open."""

GONE_S = 1.0
"""How long calls of a connection that was closed go on to turn up."""

WITHOUT_REQUEST_WEIGHT = 20
"""A call that ends before its request is there counts as so many refusals. It may have brought megabytes, or be one of
thousands that are taken back as soon as they are made."""

LINE_PER_PLACE = 32
"""How many calls may wait for each place that a download can have."""

_SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name
_GET_SLICE, _PUSH_UPDATE, _WATCH_ROUNDS = (f"/{_SERVICE}/{name}" for name in ("GetSlice", "PushUpdate", "WatchRounds"))

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


def grpc_options(limits: LimitsConfig) -> list[tuple[str, int]]:
    """The limits that gRPC itself keeps."""
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        # Otherwise gRPC lets a client fill megabytes of a call that nobody has looked at; large frames make up for it.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", limits.window_bytes),
        ("grpc.http2.max_frame_size", FRAME_BYTES),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_s * 1000)),
        ("grpc.http2.settings_timeout", round(limits.handshake_s * 1000)),
        ("grpc.max_connection_idle_ms", round(limits.connection_idle_s * 1000)),
    ]


class ConnectionLimits(grpc.aio.ServerInterceptor):
    """What a connection may do, whoever calls over it. The first interceptor.

    A unary call and a stream look the same on the wire. Every call is handled as a stream here, because gRPC would wait
    for a unary call's request for ever, before anybody is asked.

    Args:
        limits: the configured ones.
        transfer_timeout_s: how long a client may leave a message unread.
        hang_up: closes a connection.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        transfer_timeout_s: float,
        hang_up: Callable[[str], bool] = hang_up,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._limits = limits
        self._transfer_timeout_s = transfer_timeout_s
        self._hang_up = hang_up
        self._clock = clock
        self._paces = Paces(limits.requests_per_s, limits.request_burst, limits.refusals)
        self._gone: TTLCache[str, None] = TTLCache(limits.connections, GONE_S, clock)
        self._log_pace = TokenBucket(1, 20, clock())
        self._half_open = Places("calls without a request", FairPlaces(limits.half_open_calls, stall_s=1.0), clock)
        self._log = get_logger()

    @property
    def num_half_open(self) -> int:
        """Calls whose request isn't there yet."""
        return self._half_open.num_held

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details) or _UNKNOWN
        method = handler_call_details.method
        if handler.response_streaming:

            async def stream_stream(requests: AsyncIterator[bytes], context: Context) -> None:
                await self._serve(method, handler, requests, context)

            return grpc.stream_stream_rpc_method_handler(stream_stream, None, handler.response_serializer)

        async def stream_unary(requests: AsyncIterator[bytes], context: Context) -> Any:
            return await self._serve(method, handler, requests, context)

        return grpc.stream_unary_rpc_method_handler(stream_unary, None, handler.response_serializer)

    async def _serve(self, method: str, handler: Handler, requests: AsyncIterator[bytes], context: Context) -> Any:
        guarded = GuardedContext(context, self._transfer_timeout_s, self._end_connection)
        peer = context.peer()
        if peer in self._gone:
            raise asyncio.CancelledError
        await self._admit(method, peer, guarded)
        weight = WITHOUT_REQUEST_WEIGHT
        try:
            request = await self._opened(method, handler, requests, peer)
            weight = 1
            return await _respond(handler, request, guarded)
        except RequestError as error:
            await abort(guarded, error)
        except asyncio.CancelledError:  # taken back by the client
            if weight > 1:
                guarded.ended_with = grpc.StatusCode.RESOURCE_EXHAUSTED
            raise
        finally:
            if guarded.ended_with in _HOSTILE and peer not in self._gone:
                verdict = self._paces.refuse(peer, address_of(peer), self._clock(), weight)
                self._follow(verdict, method, peer, guarded.ended_with)

    async def _admit(self, method: str, peer: str, context: GuardedContext) -> None:
        verdict, wait_s = self._paces.call(peer, address_of(peer), self._clock())
        if verdict is not Verdict.ADMITTED:
            self._follow(verdict, method, peer, grpc.StatusCode.RESOURCE_EXHAUSTED)
            await abort(context, _too_fast(self._limits, "on a connection", wait_s))

    def _follow(self, verdict: Verdict, method: str, peer: str, code: grpc.StatusCode) -> None:
        """Do what a refusal asks for besides, and log some of it: who floods the server mustn't flood the log."""
        if verdict is Verdict.HANG_UP:
            self._end_connection(peer, "too many of its calls were refused")
        elif self._log_pace.take(self._clock()) == 0:
            self._log.warning("call.limited", rpc=method.rpartition("/")[2], peer=peer, code=code.name)

    def _end_connection(self, peer: str, reason: str) -> None:
        if self._hang_up(peer):
            self._gone[peer] = None
            self._log.warning("connection.closed", peer=peer, reason=reason)

    async def _opened(self, method: str, handler: Handler, requests: AsyncIterator[bytes], peer: str) -> Any:
        """What the handler is called with, once the first message is there."""
        timeout_s = self._limits.request_s
        try:
            async with self._half_open.hold(peer), asyncio.timeout(timeout_s):
                messages = aiter(requests)
                first = await anext(messages, None)
                if first is None:
                    await asyncio.sleep(HANG_UP_S)
                if not handler.request_streaming:
                    await self._require_one(first, messages)
        except TimeoutError:
            raise LimitExceededError(f"no request arrived for {timeout_s:g} s", retry_after_s=RETRY_S) from None
        if first is not None and len(first) > self._limits.request_bytes:
            raise LimitExceededError(
                f"request: at most {self._limits.request_bytes} bytes are allowed, got {len(first)}"
            )
        parsed = None if first is None else _parsed(handler, first)
        named_client.set(_client_id(method, parsed))
        if not handler.request_streaming:
            return parsed
        return _Messages(parsed, messages if handler.request_deserializer is None else _all_parsed(handler, messages))

    @staticmethod
    async def _require_one(first: bytes | None, messages: AsyncIterator[bytes]) -> None:
        """Check that a call brought one request. What else it sends would lie in the transport's memory."""
        if first is None:
            raise MalformedStreamError("expected a request, got none")
        if await anext(messages, None) is not None:
            raise MalformedStreamError("expected one request, got another behind it")


class CallerLimits(grpc.aio.ServerInterceptor):
    """What a client may do. The last interceptor: authentication has said who it is, or doesn't ask.

    Args:
        limits: the configured ones.
        clock: seconds, monotonic.
    """

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic):
        self._limits = limits
        self._clock = clock
        self._paces = Paces(limits.requests_per_s, limits.request_burst, limits.refusals)
        """Of clients, wherever they call from."""
        downloads = FairPlaces(limits.downloads, LINE_PER_PLACE * limits.downloads, limits.stall_s)
        self.downloads = Places("downloads", downloads, clock, limits.downloads_per_client)
        self.uploads = Places("uploads", FairPlaces(limits.uploads), clock, limits.uploads_per_client)
        self.watches = Places("event streams", FairPlaces(limits.watches), clock, limits.watches_per_client)
        self.observers = Places("observers", FairPlaces(limits.observers), clock, limits.watches_per_client)
        self.others = Places("other calls", FairPlaces(limits.other_calls), clock)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method

        async def limited(request: Any, context: Any) -> Any:
            try:
                return await self._serve(method, handler, request, context)
            except LimitExceededError as error:
                await abort(context, error)

        return _HANDLER_OF[handler.request_streaming, handler.response_streaming](
            limited, handler.request_deserializer, handler.response_serializer
        )

    async def _serve(self, method: str, handler: Handler, request: Any, context: Any) -> Any:
        caller = caller_of(context.peer())
        if caller.identity:
            self._require_pace(caller.identity)
        places = self._places(method, caller.client_id)
        async with places.hold(caller.group, caller.client) as claim:
            if method != _PUSH_UPDATE:
                return await _respond(handler, request, Noting(context, lambda: places.progress(claim)))
            try:
                async with asyncio.timeout(self._limits.upload_s) as scope:
                    return await _respond(handler, request, context)
            except TimeoutError:
                if not scope.expired():
                    raise
                raise LimitExceededError(
                    f"the upload took longer than {self._limits.upload_s:g} s", retry_after_s=RETRY_S
                ) from None

    def _require_pace(self, identity: str) -> None:
        verdict, wait_s = self._paces.call(identity, identity, self._clock())
        if verdict is not Verdict.ADMITTED:
            raise _too_fast(self._limits, "for a client", wait_s)

    def _places(self, method: str, client_id: str) -> Places:
        if method == _WATCH_ROUNDS:
            return self.watches if client_id else self.observers
        return {_GET_SLICE: self.downloads, _PUSH_UPDATE: self.uploads}.get(method, self.others)


class Places:
    """Places for one kind of call, as calls hold them.

    Args:
        what: names them, for messages.
        places: who has one.
        clock: seconds, monotonic.
        per_client: how many a client may have; any number if None.
    """

    def __init__(self, what: str, places: FairPlaces, clock: Callable[[], float], per_client: int | None = None):
        self._what = what
        self._places = places
        self._clock = clock
        self._quota = None if per_client is None else Quota(what, per_client)

    @property
    def num_held(self) -> int:
        return self._places.num_held

    @property
    def num_waiting(self) -> int:
        return self._places.num_waiting

    def progress(self, claim: Claim) -> None:
        """Note that a call came on."""
        self._places.progress(claim, self._clock())

    @asynccontextmanager
    async def hold(self, group: str, client: str = "") -> AsyncIterator[Claim]:
        """Have a place, after waiting for it if need be, until it is given up or taken away.

        Raises:
            LimitExceededError: there is none, or another call needs it more.
        """
        if self._quota is not None:
            self._quota.enter(client)
        try:
            async with self._held(group) as claim:
                yield claim
        finally:
            if self._quota is not None:
                self._quota.leave(client)

    @asynccontextmanager
    async def _held(self, group: str) -> AsyncIterator[Claim]:
        loop = asyncio.get_running_loop()
        granted, ended = asyncio.Event(), False
        claim = Claim(group, self._clock(), on_grant=granted.set)
        try:
            async with asyncio.timeout(None) as scope:

                def end() -> None:
                    nonlocal ended
                    ended = True
                    scope.reschedule(loop.time())

                claim.on_end = end
                try:
                    self._places.add(claim, self._clock())
                    await self._granted(granted)
                    yield claim
                finally:
                    self._places.remove(claim, self._clock())
        except TimeoutError:
            if not ended:
                raise
            raise LimitExceededError(
                f"{self._what}: there are too many in all, and others have fewer or were faster", retry_after_s=RETRY_S
            ) from None

    async def _granted(self, granted: asyncio.Event) -> None:
        while not granted.is_set():
            try:
                async with asyncio.timeout(RETRY_S / 2):
                    await granted.wait()
            except TimeoutError:
                if granted.is_set():
                    return
                self._places.review(self._clock())


class GuardedContext:
    """A call's context, such that what the call ends with is said or the connection closed.

    Args:
        context: gRPC's own.
        timeout_s: how long a message may wait to be taken.
        end_connection: told the peer and the reason.
    """

    def __init__(self, context: Any, timeout_s: float, end_connection: Callable[[str, str], None]):
        self._context = context
        self._timeout_s = timeout_s
        self._end_connection = end_connection
        self._has_begun = False
        self.ended_with: grpc.StatusCode | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Let the client know that the call goes on."""
        self._has_begun = True
        await self._context.send_initial_metadata(metadata)

    async def write(self, message: Any) -> None:
        """Send a message.

        Raises:
            LimitExceededError: the client doesn't take it.
        """
        if not self._has_begun:  # else it would go with the message, and no status could be sent before that is taken
            await self.send_initial_metadata(())
        try:
            async with asyncio.timeout(self._timeout_s) as scope:
                await self._context.write(message)
        except TimeoutError:
            if not scope.expired():
                raise
            raise LimitExceededError(f"no message was taken for {self._timeout_s:g} s", RETRY_S) from None

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with a status."""
        if self.ended_with is not None:
            raise asyncio.CancelledError  # it had to go while it was going already
        self.ended_with = code
        try:
            async with asyncio.timeout(LAST_WORD_S) as scope:
                await self._context.abort(code, details, tuple(trailing_metadata))
        except TimeoutError:
            if not scope.expired():
                raise
            self._end_connection(self._context.peer(), "it doesn't read how a call ended")
            raise asyncio.CancelledError from None
        raise AssertionError("abort raises")


class Noting:
    """A call's context that tells of every message that was sent."""

    def __init__(self, context: Any, on_write: Callable[[], None]):
        self._context = context
        self._on_write = on_write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._on_write()


class _Messages:
    """A stream's messages, of which the first has been read already."""

    def __init__(self, first: Any, rest: AsyncIterator[Any]):
        self._first = first
        self._rest = rest

    def __aiter__(self) -> _Messages:
        return self

    def __anext__(self) -> Awaitable[Any]:
        if self._first is None:
            return self._rest.__anext__()
        first, self._first = self._first, None
        return _ready(first)


async def _ready(message: Any) -> Any:
    return message


async def _all_parsed(handler: Handler, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for message in messages:
        yield _parsed(handler, message)


def _parsed(handler: Handler, message: bytes) -> Any:
    if handler.request_deserializer is None:
        return message
    try:
        return handler.request_deserializer(message)
    except DecodeError:
        raise InvalidRequestError(f"expected a request of this call, got {len(message)} other bytes") from None


def _client_id(method: str, request: Any) -> str:
    """The client that a request says it comes from."""
    if method == _PUSH_UPDATE and request is not None:
        try:
            opening = read_message(request, pb.PushUpdateRequest)
        except MalformedStreamError:
            return ""
        return "" if isinstance(opening, Chunk) else opening.header.client_id
    return str(getattr(request, "client_id", ""))


async def _respond(handler: Handler, request: Any, context: Any) -> Any:
    """Call a handler of any shape, in the task of the call."""
    behaviour: Any = _behaviour(handler)
    if not inspect.isasyncgenfunction(behaviour):
        return await behaviour(request, context)
    async with aclosing(behaviour(request, context)) as messages:
        async for message in messages:
            await context.write(message)
    return None


def _behaviour(handler: Handler) -> Any:
    if handler.request_streaming:
        return handler.stream_stream if handler.response_streaming else handler.stream_unary
    return handler.unary_stream if handler.response_streaming else handler.unary_unary


def _too_fast(limits: LimitsConfig, whose: str, wait_s: float) -> LimitExceededError:
    return LimitExceededError(
        f"calls: at most {limits.requests_per_s:g} a second are allowed {whose}, and {limits.request_burst} at once",
        retry_after_s=wait_s,
    )


async def _unknown(requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


_UNKNOWN: Handler = grpc.stream_unary_rpc_method_handler(_unknown, None, None)

_HOSTILE = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""What a call ends with that counts as a refusal: who goes on with such calls is up to no good, or broken."""

_HANDLER_OF: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def with_limits(
    limits: LimitsConfig, transfer_timeout_s: float, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
) -> list[grpc.aio.ServerInterceptor]:
    """A server's interceptors, these and the limits around them."""
    return [ConnectionLimits(limits, transfer_timeout_s), *interceptors, CallerLimits(limits)]
