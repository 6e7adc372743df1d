"""An interceptor around all others, for what wants to see each call whole: how long it took, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from fedmtl.v1 import federation_pb2 as pb

OTHER = "other"
"""The name of every method that isn't one of the service's: anybody may call anything."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"]
_NAMES = {f"/{_SERVICE.full_name}/{method.name}": method.name for method in _SERVICE.methods}
_CODES: dict[Any, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


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
        self, continuation: Callable[..., Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = _NAMES.get(handler_call_details.method, OTHER)
        behaviour = handler.stream_stream or handler.stream_unary

        async def within(requests: AsyncIterator[bytes], context: Any) -> Any:
            call = Call(method, context.invocation_metadata() or ())
            with self._around(call):
                try:
                    answer = await behaviour(requests, context)
                    call.code = _code_of(context)
                    return answer
                except asyncio.CancelledError:
                    call.code = grpc.StatusCode.CANCELLED
                    raise
                except grpc.aio.AbortError:
                    call.code = _code_of(context)
                    raise

        make = grpc.stream_stream_rpc_method_handler if handler.stream_stream else grpc.stream_unary_rpc_method_handler
        return make(within, handler.request_deserializer, handler.response_serializer)


def _code_of(context: Any) -> grpc.StatusCode:
    code = context.code() or grpc.StatusCode.OK  # gRPC sets it only for what isn't
    return code if isinstance(code, grpc.StatusCode) else _CODES.get(code, grpc.StatusCode.UNKNOWN)
