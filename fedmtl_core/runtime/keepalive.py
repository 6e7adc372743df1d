"""Keepalive options of gRPC, with which client and server detect a dead connection."""

from __future__ import annotations


def keepalive(silence_s: float, timeout_s: float) -> dict[str, int]:
    """Return gRPC options that end a connection if nothing is received from the other side.

    The first two options aren't enough. gRPC waits a minute for the answer to a ping, even with a shorter keepalive
    timeout. Moreover, a client that only receives, such as one that watches rounds, would ping twice and then only
    once a minute.

    Args:
        silence_s: seconds without received data after which to ping the other side.
        timeout_s: seconds to wait for the answer.
    """
    return {
        "grpc.keepalive_time_ms": round(silence_s * 1000),
        "grpc.keepalive_timeout_ms": round(timeout_s * 1000),
        "grpc.http2.ping_timeout_ms": round(timeout_s * 1000),
        "grpc.http2.max_pings_without_data": 0,
    }
