"""Connections as the operating system has them.

gRPC for Python has no call that closes one connection, and none that ends a stream whose client doesn't read: the
status waits behind the bytes that nobody takes, together with these. Shutting down the socket underneath
is what ends it.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_MAPPED = "::ffff:"  # an IPv4 address on a socket that takes both


def hang_up(peer: str) -> bool:
    """End a connection at once, with every call on it.

    Args:
        peer: as gRPC names it, such as `ipv4:127.0.0.1:50051` or `ipv6:%5B::1%5D:50051`.

    Returns:
        Whether there was such a connection.
    """
    wanted = _host_and_port(peer)
    if wanted is None:
        return False
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            descriptor = os.dup(int(name))  # so that it stays this one's while it is looked at
            try:
                connection = socket.socket(fileno=descriptor)
            except OSError:
                os.close(descriptor)
                continue
            with connection:
                if _matches(connection, wanted):
                    connection.shutdown(socket.SHUT_RDWR)
                    return True
    return False


def _matches(connection: socket.socket, wanted: tuple[str, int]) -> bool:
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    host, port = connection.getpeername()[:2]
    return (host.removeprefix(_MAPPED), port) == wanted


def _host_and_port(peer: str) -> tuple[str, int] | None:
    kind, _, rest = peer.partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    host = host.replace("%5B", "[").replace("%5D", "]").replace("%25", "%").strip("[]")
    return host.removeprefix(_MAPPED), int(port)
