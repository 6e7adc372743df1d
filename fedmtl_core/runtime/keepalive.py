"""How both sides notice that a connection is dead: the same options for a channel and for a server."""

from __future__ import annotations


def keepalive(silence_s: float, timeout_s: float) -> dict[str, int]:
    """gRPC's options to give a connection up if nothing is heard of the other side.

    The first two are not enough. gRPC waits a minute for the answer to a ping, however short the keepalive's timeout
    is; and a client that only listens, as one that watches does, would ping twice and then once a minute.

    Args:
        silence_s: how long to hear nothing before the other side is asked for a sign of life.
        timeout_s: how long to wait for that.
    """
    return {
        "grpc.keepalive_time_ms": round(silence_s * 1000),
        "grpc.keepalive_timeout_ms": round(timeout_s * 1000),
        "grpc.http2.ping_timeout_ms": round(timeout_s * 1000),
        "grpc.http2.max_pings_without_data": 0,
    }
