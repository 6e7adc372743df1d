"""Applies the limits to every call, in interceptors around authentication and the servicer.

`ConnectionLimits` is the first interceptor. It checks the call's connection when the headers arrive, reads the first
message within limits of time and size, and ensures that a call that ends releases its connection. `CallerLimits` is the
last interceptor, where the caller is known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NoReturn

import grpc
from cachetools import TTLCache

from fedmtl_core.config import LimitsConfig
from fedmtl_core.errors import LimitExceededError, RequestError
from fedmtl_core.logs import get_logger
from fedmtl_server.access.claims import SERVICE, claim_of
from fedmtl_server.access.concurrency import ConcurrencyLimiter
from fedmtl_server.access.contexts import GuardedContext, WriteProgressContext
from fedmtl_server.access.openings import Messages, as_stream, first_message, open_call
from fedmtl_server.access.rates import RETRY_S, Decision, RateLimiter, TokenBucket
from fedmtl_server.access.semaphores import FairSemaphore
from fedmtl_server.rpc.abort import abort
from fedmtl_server.rpc.caller_context import address_of, caller_of, named_client
from fedmtl_server.rpc.handlers import Behavior, CallContext, Continuation, Handler, Q, R, behavior_of, with_behavior
from fedmtl_server.rpc.sockets import hang_up

FRAME_BYTES = 4 * 2**20
"""The largest HTTP/2 frame. It has room for a chunk, once the flow-control window is open."""

GONE_S = 1.0
"""How long calls of a closed connection continue to arrive, in seconds."""

WITHOUT_REQUEST_WEIGHT = 20
"""The number of refusals that a call counts as if it ends before its request has arrived. It can have sent megabytes,
or be one of thousands that are canceled as soon as they are made."""

QUEUE_PER_DOWNLOAD = 32
"""The maximum number of waiting downloads for each concurrent download."""

_GET_SLICE, _PUSH_UPDATE, _WATCH_ROUNDS = (f"/{SERVICE}/{name}" for name in ("GetSlice", "PushUpdate", "WatchRounds"))


def grpc_options(limits: LimitsConfig) -> list[tuple[str, int]]:
    """Return the limits that gRPC itself enforces."""
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        # Otherwise a client can fill megabytes of a call before any code reads it. Large frames keep transfers fast.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", limits.window_bytes),
        ("grpc.http2.max_frame_size", FRAME_BYTES),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_s * 1000)),
        ("grpc.http2.settings_timeout", round(limits.handshake_s * 1000)),
        ("grpc.max_connection_idle_ms", round(limits.connection_idle_s * 1000)),
    ]


class ConnectionLimits(grpc.aio.ServerInterceptor):
    """Limits each connection, whatever clients call over it. This is the first interceptor.

    Args:
        limits: the configured limits.
        transfer_timeout_s: the maximum time for a client to read a message, in seconds.
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
        self._rates = RateLimiter(limits.requests_per_s, limits.request_burst, limits.refusals)
        self._gone: TTLCache[str, None] = TTLCache(limits.connections, GONE_S, clock)
        self._log_rate = TokenBucket(1, 20, clock())
        half_open = FairSemaphore(limits.half_open_calls, stall_s=1.0)
        self._half_open = ConcurrencyLimiter("calls without a request", half_open, clock)
        self._log = get_logger()

    @property
    def num_half_open(self) -> int:
        """The number of calls whose request has not arrived yet."""
        return self._half_open.num_held

    async def intercept_service(
        self, continuation: Continuation[Q, R], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler[Q, R]:
        handler = await continuation(handler_call_details) or _unknown_handler()
        method = handler_call_details.method

        async def limited(messages: Messages[Q], context: CallContext) -> R | None:
            return await self._serve(method, handler, messages, context)

        return as_stream(handler, limited)

    async def _serve(
        self, method: str, handler: Handler[Q, R], messages: Messages[Q], context: CallContext
    ) -> R | None:
        guarded = GuardedContext(context, self._transfer_timeout_s, self._end_connection)
        peer = context.peer()
        if peer in self._gone:
            raise asyncio.CancelledError
        await self._admit(method, peer, guarded)
        weight = WITHOUT_REQUEST_WEIGHT
        try:
            request = await self._opened(method, handler, messages, peer)
            weight = 1
            return await behavior_of(handler)(request, guarded)
        except RequestError as error:
            await abort(guarded, error)
        except asyncio.CancelledError:  # canceled by the client
            if weight > 1:
                guarded.ended_with = grpc.StatusCode.RESOURCE_EXHAUSTED
            raise
        finally:
            if guarded.ended_with in _HOSTILE and peer not in self._gone:
                decision = self._rates.refuse(peer, address_of(peer), self._clock(), weight)
                self._apply(decision, method, peer, guarded.ended_with)

    async def _admit(self, method: str, peer: str, context: GuardedContext) -> None:
        decision, wait_s = self._rates.check(peer, address_of(peer), self._clock())
        if decision is not Decision.ADMITTED:
            self._apply(decision, method, peer, grpc.StatusCode.RESOURCE_EXHAUSTED)
            await abort(context, _too_fast(self._limits, "on a connection", wait_s))

    def _apply(self, decision: Decision, method: str, peer: str, code: grpc.StatusCode) -> None:
        """Close the connection of a caller that was refused too often; otherwise log refusals at a limited rate."""
        if decision is Decision.HANG_UP:
            self._end_connection(peer, "too many of its calls were refused")
        elif self._log_rate.take(self._clock()) == 0:
            self._log.warning("call.limited", rpc=method.rpartition("/")[2], peer=peer, code=code.name)

    def _end_connection(self, peer: str, reason: str) -> None:
        if self._hang_up(peer):
            self._gone[peer] = None
            self._log.warning("connection.closed", peer=peer, reason=reason)

    async def _opened(
        self, method: str, handler: Handler[Q, R], messages: Messages[Q], peer: str
    ) -> Q | AsyncIterator[Q]:
        """Read the opening message, and return the argument for the handler."""
        timeout_s, most_bytes = self._limits.request_s, self._limits.request_bytes
        try:
            async with self._half_open.permit(peer), asyncio.timeout(timeout_s):
                messages = aiter(messages)  # not earlier: gRPC fails if nobody reads the iterator
                first = await first_message(handler, messages)
        except TimeoutError:
            raise LimitExceededError(f"no request arrived for {timeout_s:g} s", retry_after_s=RETRY_S) from None
        if first is not None and len(first) > most_bytes:
            raise LimitExceededError(f"request: at most {most_bytes} bytes are allowed, got {len(first)}")
        call = open_call(handler, first, messages)
        if call.opening is not None:
            named_client.set(claim_of(method, call.opening).client_id)
        return call.request


class CallerLimits(grpc.aio.ServerInterceptor):
    """Limits each client. This is the last interceptor: the caller is authenticated, or authentication is off.

    Args:
        limits: the configured limits.
        clock: seconds, monotonic.
    """

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic):
        self._limits = limits
        self._clock = clock
        self._rates = RateLimiter(limits.requests_per_s, limits.request_burst, limits.refusals)
        """The call rates of authenticated clients, over all their connections."""
        downloads = FairSemaphore(limits.downloads, QUEUE_PER_DOWNLOAD * limits.downloads, limits.stall_s)
        uploads, watches = FairSemaphore(limits.uploads), FairSemaphore(limits.watches)
        observers, others = FairSemaphore(limits.observers), FairSemaphore(limits.other_calls)
        self.downloads = ConcurrencyLimiter("downloads", downloads, clock, limits.downloads_per_client)
        self.uploads = ConcurrencyLimiter("uploads", uploads, clock, limits.uploads_per_client)
        self.watches = ConcurrencyLimiter("event streams", watches, clock, limits.watches_per_client)
        self.observers = ConcurrencyLimiter("observers", observers, clock, limits.watches_per_client)
        self.others = ConcurrencyLimiter("other calls", others, clock)

    async def intercept_service(
        self, continuation: Continuation[Q, R], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler[Q, R] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method, serve = handler_call_details.method, behavior_of(handler)

        async def limited(request: Q | AsyncIterator[Q], context: CallContext) -> R | None:
            try:
                return await self._serve(method, serve, request, context)
            except LimitExceededError as error:
                await abort(context, error)

        return with_behavior(handler, limited)

    async def _serve(
        self, method: str, serve: Behavior[Q, R], request: Q | AsyncIterator[Q], context: CallContext
    ) -> R | None:
        caller = caller_of(context.peer())
        if caller.identity:
            self._require_rate(caller.identity)
        limiter = self._limiter(method, caller.client_id)
        async with limiter.permit(caller.group, caller.client) as permit:
            if method != _PUSH_UPDATE:
                return await serve(request, WriteProgressContext(context, lambda: limiter.note_progress(permit)))
            try:
                async with asyncio.timeout(self._limits.upload_s) as scope:
                    return await serve(request, context)
            except TimeoutError:
                if not scope.expired():
                    raise
                raise LimitExceededError(
                    f"the upload took longer than {self._limits.upload_s:g} s", retry_after_s=RETRY_S
                ) from None

    def _require_rate(self, identity: str) -> None:
        decision, wait_s = self._rates.check(identity, identity, self._clock())
        if decision is not Decision.ADMITTED:
            raise _too_fast(self._limits, "for a client", wait_s)

    def _limiter(self, method: str, client_id: str) -> ConcurrencyLimiter:
        if method == _WATCH_ROUNDS:
            return self.watches if client_id else self.observers
        return {_GET_SLICE: self.downloads, _PUSH_UPDATE: self.uploads}.get(method, self.others)


def _too_fast(limits: LimitsConfig, whose: str, wait_s: float) -> LimitExceededError:
    return LimitExceededError(
        f"calls: at most {limits.requests_per_s:g} a second are allowed {whose}, and {limits.request_burst} at once",
        retry_after_s=wait_s,
    )


def _unknown_handler() -> Handler[Q, R]:
    """Return a handler that answers `UNIMPLEMENTED`."""

    async def unknown(requests: AsyncIterator[Q], context: CallContext) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    return grpc.stream_unary_rpc_method_handler(unknown)


_HOSTILE = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""The status codes that count as refusals. A client that repeats such calls is hostile or faulty."""


def with_limits(
    limits: LimitsConfig, transfer_timeout_s: float, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
) -> list[grpc.aio.ServerInterceptor]:
    """Return a server's interceptors with the limits around them."""
    return [ConnectionLimits(limits, transfer_timeout_s), *interceptors, CallerLimits(limits)]
