"""Authenticates and authorizes callers, in an interceptor before the servicer.

Every call is compared with the known clients before the servicer sees it, and again whenever the known clients change.
A call in progress of a client that is revoked ends at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import grpc

from fedmtl_core.errors import RequestError
from fedmtl_core.logs import get_logger
from fedmtl_core.wire.status import status_of
from fedmtl_server.access.claims import CLAIMS, SERVICE, claim_of
from fedmtl_server.access.identities import Claim, Credentials, Identity, KnownClients, bearer_token, certificate_name
from fedmtl_server.rpc.abort import abort
from fedmtl_server.rpc.caller_context import current_caller
from fedmtl_server.rpc.handlers import CallContext, Continuation, Handler, Q, R, behavior_of, with_behavior
from fedmtl_server.transfer.streams import OpenedStream


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
    """Compares callers with the known clients.

    Args:
        clients: the clients that are known at first.
        open_services: the full names of the services that need no authentication.
    """

    def __init__(self, clients: KnownClients, open_services: Collection[str] = ()):
        self._clients = clients
        self._open = tuple(f"/{service}/" for service in open_services)
        self._calls: set[_Call] = set()
        self._log = get_logger()

    def replace(self, clients: KnownClients) -> None:
        """Replace the known clients, and end calls in progress that are no longer permitted."""
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
        self, continuation: Continuation[Q, R], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler[Q, R] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(self._open):
            return handler
        if method.startswith(f"/{SERVICE}/") and method not in CLAIMS:
            raise AssertionError(f"{method} has no entry in CLAIMS")
        serve = behavior_of(handler)

        async def authenticated(request: Q | AsyncIterator[Q], context: CallContext) -> R | None:
            async with self._admitting(method, context) as call:
                if isinstance(request, AsyncIterator):
                    return await serve(self._checked(request, context, call), context)
                call.require(claim_of(method, request))
                return await serve(request, context)

        return with_behavior(handler, authenticated)

    @asynccontextmanager
    async def _admitting(self, method: str, context: CallContext) -> AsyncIterator[_Call]:
        """Admit a call of a known client, and abort it when it is not or no longer permitted."""
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
            await self._refuse(context, method, call, error)
        except TimeoutError:
            if call is None or call.ended_by is None:
                raise
            await self._refuse(context, method, call, call.ended_by)

    def _checked(self, requests: AsyncIterator[Q], context: CallContext, call: _Call) -> OpenedStream[Q]:
        """Return a stream that checks its opening message when the servicer, which has its own timeout, reads it."""

        async def opening() -> Q:
            message = await anext(requests)
            try:
                call.require(claim_of(call.method, message))
            except RequestError as error:
                await self._refuse(context, call.method, call, error)
            return message

        return OpenedStream(opening, requests)

    async def _refuse(self, context: CallContext, method: str, call: _Call | None, error: RequestError) -> NoReturn:
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


def _credentials_of(context: CallContext) -> Credentials:
    """Return the credentials of a call: the name in its certificate, and the token in its headers.

    Raises:
        UnauthenticatedError: the certificate or the header is malformed.
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
