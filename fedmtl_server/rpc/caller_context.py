"""The caller of a call: the authenticated client, or otherwise the connection.

Each call is a task of its own, so a context variable that is set here is set for the rest of that call only.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

current_caller: ContextVar[str | None] = ContextVar("current_caller", default=None)
"""The name of the client whose credentials came with the call. Authentication sets it; None without authentication."""

named_client: ContextVar[str] = ContextVar("named_client", default="")
"""The `client_id` in the call's first message. It is not verified: any caller can send any id."""


@dataclass(frozen=True)
class Caller:
    """The caller to which the limits attribute a call."""

    connection: str
    """gRPC's name of the peer: address and port, which identify one connection."""
    client_id: str = ""
    """The client id in the request."""
    identity: str | None = None
    """The authenticated client id; None without authentication."""

    @property
    def group(self) -> str:
        """The unit of fair sharing: the authenticated client, or all callers on one connection.

        Many clients can share an address, and a caller can choose any client id in its request.
        """
        return self.identity or self.connection

    @property
    def client(self) -> str:
        """The client: its identity, whatever its connection, or otherwise its connection and client id."""
        return self.identity or f"{self.connection} {self.client_id}"


def caller_of(peer: str) -> Caller:
    """Return the caller of the call in which this runs."""
    return Caller(peer, named_client.get(), current_caller.get())


def address_of(peer: str) -> str:
    """Return a peer's address without its port, such as `ipv4:127.0.0.1` for `ipv4:127.0.0.1:50051`."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
