"""Who calls: the client that authentication has made out, and else the connection that the call came over.

Each call is a task of its own, so what is set here is set for the rest of that call alone.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

current_caller: ContextVar[str | None] = ContextVar("current_caller", default=None)
"""The name of the client whose credentials came with the call. Authentication sets it; None where nobody checks."""

named_client: ContextVar[str] = ContextVar("named_client", default="")
"""The `client_id` that the call's first message gives. A claim: anybody may give any."""


@dataclass(frozen=True)
class Caller:
    """Whom the limits count a call to."""

    connection: str
    """What gRPC calls the peer: address and port, so one connection."""
    client_id: str = ""
    """As the request has it."""
    identity: str | None = None
    """As authentication has it."""

    @property
    def group(self) -> str:
        """Who shares fairly with others: the client, or all that came over one connection.

        Many clients may share an address, such as this machine's; and what a request says of itself is cheap.
        """
        return self.identity or self.connection

    @property
    def client(self) -> str:
        """One client: with its identity wherever it calls from, else as its connection's client of that name."""
        return self.identity or f"{self.connection} {self.client_id}"


def caller_of(peer: str) -> Caller:
    """Whoever makes the call that this runs in."""
    return Caller(peer, named_client.get(), current_caller.get())


def address_of(peer: str) -> str:
    """A peer's address without its port: `ipv4:127.0.0.1` of `ipv4:127.0.0.1:50051`."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
