"""gRPC's reflection under both of its names.

grpcio has only `grpc.reflection.v1alpha`. Tools call `grpc.reflection.v1` first, which has the same messages. A tool
that had to fall back on every call would use up the refusals that its connection has (`limits.refusals`).
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
        server: a server that has not started yet.
        services: the full names of the services to list. Reflection itself is listed as `v1alpha`, because only that
            proto file is known.
    """
    servicer: Any = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))
    answer = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": answer}) for name in SERVICE_NAMES]
    server.add_generic_rpc_handlers(tuple(handlers))
