"""Closes single connections by their sockets.

gRPC for Python can't close one connection, and can't end a stream whose client doesn't read: the status waits behind
the unread bytes. Shutting down the socket ends the stream.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_MAPPED = "::ffff:"  # the prefix of an IPv4 address on a socket for IPv4 and IPv6


def hang_up(peer: str) -> bool:
    """Close a connection at once, with every call on it.

    Args:
        peer: gRPC's name of the peer, such as `ipv4:127.0.0.1:50051` or `ipv6:%5B::1%5D:50051`.

    Returns:
        Whether a connection with this peer was open.
    """
    wanted = _host_and_port(peer)
    if wanted is None:
        return False
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            descriptor = os.dup(int(name))  # so that the descriptor keeps its meaning during the check
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
