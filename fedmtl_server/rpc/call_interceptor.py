"""An interceptor around all others, for what wants to see each call whole: how long it took, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import grpc
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_server.rpc.handlers import CallContext, Continuation, Handler, Q, R, behaviour_of, with_behaviour

OTHER = "other"
"""The name of every method that isn't one of the service's: anybody may call anything."""

_SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"]
_NAMES = {f"/{_SERVICE.full_name}/{method.name}": method.name for method in _SERVICE.methods}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass
class Call:
    """One call."""

    method: str
    """One of the service's, or `OTHER`."""
    metadata: Iterable[tuple[str, str | bytes]]
    """As it came."""
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    """What it ended with, when it has."""


class AroundCalls(grpc.aio.ServerInterceptor):
    """Has each call go on within a context. It goes around `ConnectionLimits`, which makes a stream of every call.

    Args:
        around: makes a call's context.
    """

    def __init__(self, around: Callable[[Call], AbstractContextManager[None]]):
        self._around = around

    async def intercept_service(
        self, continuation: Continuation[Q, R], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler[Q, R] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method, serve = _NAMES.get(handler_call_details.method, OTHER), behaviour_of(handler)

        async def within(request: Q | AsyncIterator[Q], context: CallContext) -> R | None:
            call = Call(method, context.invocation_metadata() or ())
            with self._around(call):
                try:
                    answer = await serve(request, context)
                    call.code = _code_of(context)
                    return answer
                except asyncio.CancelledError:
                    call.code = grpc.StatusCode.CANCELLED
                    raise
                except grpc.aio.AbortError:
                    call.code = _code_of(context)
                    raise

        return with_behaviour(handler, within)


def _code_of(context: CallContext) -> grpc.StatusCode:
    code = context.code() or grpc.StatusCode.OK  # gRPC sets it only for what isn't
    return code if isinstance(code, grpc.StatusCode) else _CODES.get(code, grpc.StatusCode.UNKNOWN)
