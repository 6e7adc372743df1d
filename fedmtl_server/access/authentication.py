"""Lets known clients in, each to what is its own: an interceptor before the servicer, which knows nothing of it.

Every call is compared with the clients that the server knows before the servicer sees it, and again whenever these
change: a call of a client that was revoked in the meantime ends there and then.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import grpc
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import MalformedStreamError, RequestError
from fedmtl_core.logs import get_logger
from fedmtl_core.wire.chunks import Chunk, read_message
from fedmtl_core.wire.status import status_of
from fedmtl_server.access.identities import Claim, Credentials, Identity, KnownClients, bearer_token, certificate_name
from fedmtl_server.rpc.abort import abort
from fedmtl_server.rpc.caller_context import current_caller

_SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs alone


def _claim_of_update(message: bytes) -> Claim:
    """What an upload's first message claims; nothing if it isn't a header, which the servicer then refuses."""
    try:
        opening = read_message(message, pb.PushUpdateRequest)
    except MalformedStreamError:
        return Claim()
    if isinstance(opening, Chunk):
        return Claim()
    header = opening.header
    return Claim(header.client_id, header.task, tasks=(header.next_task,))


CLAIMS: Mapping[str, Callable[[Any], Claim]] = {
    f"/{_SERVICE}/GetSlice": lambda request: Claim(request.client_id, request.task, request.all_tasks),
    f"/{_SERVICE}/PushUpdate": _claim_of_update,
    f"/{_SERVICE}/QueryUpload": lambda request: Claim(request.client_id),
    f"/{_SERVICE}/WatchRounds": lambda request: Claim(request.client_id, request.task, tasks=tuple(request.tasks)),
    f"/{_SERVICE}/GetStatus": lambda request: Claim(),
}
"""By method, what a call's first message claims. A method of the service that isn't here is closed to everybody."""


@dataclass(eq=False)
class _Call:
    """One call in progress."""

    method: str
    credentials: Credentials
    scope: asyncio.Timeout
    identity: Identity
    claim: Claim = field(default_factory=Claim)
    ended_by: RequestError | None = None

    def require(self, claim: Claim) -> None:
        self.identity.require(claim)
        self.claim = claim


class Authentication(grpc.aio.ServerInterceptor):
    """Compares callers with the clients that the server knows.

    Args:
        clients: those known at first.
        open_services: full names of services that answer anybody.
    """

    def __init__(self, clients: KnownClients, open_services: Collection[str] = ()):
        self._clients = clients
        self._open = tuple(f"/{service}/" for service in open_services)
        self._calls: set[_Call] = set()
        self._log = get_logger()

    def replace(self, clients: KnownClients) -> None:
        """Take other clients for the known ones; calls in progress that these may not make any more are ended."""
        if clients == self._clients:
            return
        self._clients = clients
        for call in list(self._calls):
            try:
                call.identity = clients.identify(call.credentials)
                call.identity.require(call.claim)
            except RequestError as error:
                self._calls.discard(call)
                call.ended_by = error
                call.scope.reschedule(asyncio.get_running_loop().time())

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(self._open):
            return handler
        if method.startswith(f"/{_SERVICE}/") and method not in CLAIMS:
            raise AssertionError(f"{method} has no rule of who may call it")
        claim_of = CLAIMS.get(method, lambda message: Claim())
        return _Guard(self, method, claim_of).around(handler)

    @asynccontextmanager
    async def admitting(self, method: str, context: Context) -> AsyncIterator[_Call]:
        """A call of a known client for as long as it may go on; it is aborted where it may not."""
        call = None
        try:
            credentials = _credentials_of(context)
            identity = self._clients.identify(credentials)
            current_caller.set(identity.client_id)
            async with asyncio.timeout(None) as scope:
                call = _Call(method, credentials, scope, identity)
                self._calls.add(call)
                try:
                    yield call
                finally:
                    self._calls.discard(call)
        except RequestError as error:
            await self.refuse(context, method, call, error)
        except TimeoutError:
            if call is None or call.ended_by is None:
                raise
            await self.refuse(context, method, call, call.ended_by)

    async def refuse(self, context: Context, method: str, call: _Call | None, error: RequestError) -> NoReturn:
        """End a call with an error's status."""
        code = status_of(error)
        self._log.warning(
            "call.ended" if call and call.ended_by else "call.refused",
            rpc=method.rpartition("/")[2],
            client_id=call.identity.client_id if call else None,
            peer=context.peer(),
            code=code.name,
            reason=str(error),
        )
        await abort(context, error)


@dataclass(frozen=True)
class _Guard:
    """A handler's four shapes, each with the caller and its first message checked before."""

    authentication: Authentication
    method: str
    claim_of: Callable[[Any], Claim]

    def around(self, handler: Handler) -> Handler:
        inner: Any
        outer: Any
        if handler.request_streaming and handler.response_streaming:
            inner, outer, make = handler.stream_stream, self._stream_stream, grpc.stream_stream_rpc_method_handler
        elif handler.request_streaming:
            inner, outer, make = handler.stream_unary, self._stream_unary, grpc.stream_unary_rpc_method_handler
        elif handler.response_streaming:
            inner, outer, make = handler.unary_stream, self._unary_stream, grpc.unary_stream_rpc_method_handler
        else:
            inner, outer, make = handler.unary_unary, self._unary_unary, grpc.unary_unary_rpc_method_handler
        return make(outer(inner), handler.request_deserializer, handler.response_serializer)

    def _unary_unary(self, inner: Any) -> Any:
        async def unary_unary(request: Any, context: Context) -> Any:
            async with self._admitting(context) as call:
                call.require(self.claim_of(request))
                return await inner(request, context)

        return unary_unary

    def _stream_unary(self, inner: Any) -> Any:
        async def stream_unary(requests: AsyncIterator[Any], context: Context) -> Any:
            async with self._admitting(context) as call:
                return await inner(self._checked(requests, context, call), context)

        return stream_unary

    def _unary_stream(self, inner: Any) -> Any:
        async def unary_stream(request: Any, context: Context) -> None:
            async with self._admitting(context) as call:
                call.require(self.claim_of(request))
                await _respond(inner, request, context)

        return unary_stream

    def _stream_stream(self, inner: Any) -> Any:
        async def stream_stream(requests: AsyncIterator[Any], context: Context) -> None:
            async with self._admitting(context) as call:
                await _respond(inner, self._checked(requests, context, call), context)

        return stream_stream

    def _admitting(self, context: Context) -> Any:
        return self.authentication.admitting(self.method, context)

    async def _checked(self, requests: AsyncIterator[Any], context: Context, call: _Call) -> AsyncIterator[Any]:
        """A stream's messages; the first is checked when the servicer, which has its own patience, asks for it."""
        is_first = True
        async for request in requests:
            if is_first:
                try:
                    call.require(self.claim_of(request))
                except RequestError as error:
                    await self.authentication.refuse(context, self.method, call, error)
                is_first = False
            yield request


async def _respond(inner: Any, request: Any, context: Context) -> None:
    """Call a handler that answers with a stream, in the task of the call, where it can be ended."""
    if not inspect.isasyncgenfunction(inner):
        await inner(request, context)
        return
    async with aclosing(inner(request, context)) as messages:
        async for message in messages:
            await context.write(message)


def _credentials_of(context: Context) -> Credentials:
    """What came with a call: of a certificate the name, of the headers the token.

    Raises:
        UnauthenticatedError: they can't be made out.
    """
    peer: Mapping[str, Iterable[bytes]] = context.auth_context()
    name = None
    if peer.get("x509_pem_cert"):
        common, alternative = (
            [value.decode("utf-8", "replace") for value in peer.get(key, ())]
            for key in ("x509_common_name", "x509_subject_alternative_name")
        )
        name = certificate_name(common, alternative)
    headers = [str(value) for key, value in context.invocation_metadata() or () if key.lower() == "authorization"]
    return Credentials(name, bearer_token(headers))
