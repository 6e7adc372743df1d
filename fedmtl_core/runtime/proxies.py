"""The HTTP proxy that gRPC connects through, as the environment names it.

gRPC has no call that tells, and its errors don't name the proxy. So its reading of the environment is repeated here:
only lower-case variables, the first that is set counts even if it is empty, and only `http://` addresses are used.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedmtl_core.addresses import is_loopback, without_brackets

NO_PROXY: Mapping[str, int] = {"grpc.enable_http_proxy": 0}
"""The channel option that keeps gRPC from connecting through a proxy."""

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True)
class Proxy:
    """A proxy between this machine and a host."""

    variable: str
    """The environment variable that names it."""
    address: str
    """Without user and password."""
    exceptions: str
    """The variable in which gRPC looks for the hosts that it connects to directly."""
    host: str
    """The host that is reached through it."""

    def __str__(self) -> str:
        return (
            f"{self.variable} is set, so gRPC connects through the proxy {self.address}; add {self.host} to "
            f"{self.exceptions} to connect directly (gRPC reads names, domains and CIDR ranges there, not `*`, and "
            f"only lower-case variables)"
        )


def channel_options(host: str) -> Mapping[str, int]:
    """The options of a channel to a host: what goes to this machine goes through no proxy."""
    return NO_PROXY if is_loopback(host) else {}


def proxy_of(host: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy that a client of FedMTL reaches a host through; None if it connects directly."""
    return None if is_loopback(host) else proxy_of_grpc(host, environment)


def proxy_of_grpc(host: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy that gRPC reaches a host through, unless a channel option forbids it; None if it connects directly."""
    variable = next((name for name in _PROXIES if name in environment), None)
    address = _without_user(environment[variable]) if variable else ""
    if variable is None or not address:
        return None
    host = without_brackets(host)
    exceptions = next((name for name in _EXCEPTIONS if name in environment), _EXCEPTIONS[-1])
    entries = (entry.strip() for entry in environment.get(exceptions, "").split(","))
    if any(_covers(entry, host) for entry in entries if entry):
        return None
    return Proxy(variable, address, exceptions, host)


def _without_user(url: str) -> str:
    """A proxy's address without user and password; empty if gRPC doesn't use it."""
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]  # any text is an answer here
    return f"http://{authority}" if scheme == "http" else ""


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of `no_proxy` means a host: as its name, a domain above it, or a range of addresses."""
    name, domain = host.lower(), entry.lower().removeprefix(".")
    if name == domain or name.endswith(f".{domain}"):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
