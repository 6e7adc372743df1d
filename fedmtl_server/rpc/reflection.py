"""gRPC's reflection under both of its names.

grpcio has `grpc.reflection.v1alpha` alone. Tools ask `grpc.reflection.v1` first, which has the same messages; one that
had to fall back at every call would count as one whose calls are refused (`limits.refusals`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

SERVICE_NAMES = (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection")


def add_to(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Register reflection.

    Args:
        server: not started yet.
        services: full names of those to list. Reflection itself is listed as `v1alpha`, whose file is known.
    """
    servicer: Any = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))
    answer = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": answer}) for name in SERVICE_NAMES]
    server.add_generic_rpc_handlers(tuple(handlers))
