"""The outermost interceptor, for code that observes whole calls: their duration and their status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import grpc
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_server.rpc.handlers import CallContext, Continuation, Handler, Q, R, behavior_of, with_behavior

OTHER = "other"
"""The name for all methods outside the service, because callers can send any method name."""

_SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"]
_NAMES = {f"/{_SERVICE.full_name}/{method.name}": method.name for method in _SERVICE.methods}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass
class Call:
    """One call."""

    method: str
    """The name of the service's method, or `OTHER`."""
    metadata: Iterable[tuple[str, str | bytes]]
    """The metadata that the client sent."""
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    """The call's status code, once the call has ended."""


class AroundCalls(grpc.aio.ServerInterceptor):
    """Wraps every call in a context manager. It goes outside `ConnectionLimits`, which turns every call into a stream.

    Args:
        around: returns a call's context manager.
    """

    def __init__(self, around: Callable[[Call], AbstractContextManager[None]]):
        self._around = around

    async def intercept_service(
        self, continuation: Continuation[Q, R], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler[Q, R] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method, serve = _NAMES.get(handler_call_details.method, OTHER), behavior_of(handler)

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

        return with_behavior(handler, within)


def _code_of(context: CallContext) -> grpc.StatusCode:
    code = context.code() or grpc.StatusCode.OK  # gRPC sets the code only for other codes
    return code if isinstance(code, grpc.StatusCode) else _CODES.get(code, grpc.StatusCode.UNKNOWN)
