"""The HTTP proxy that gRPC connects through, according to the environment.

gRPC has no function that returns its proxy, and its errors don't name it. So this module repeats gRPC's reading of the
environment: only lower-case variables are read, the first one that is set counts even if it is empty, and only
`http://` addresses are used.
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
    """The environment variable that names the proxy."""
    address: str
    """The proxy's address, without user and password."""
    exceptions: str
    """The variable with the hosts that gRPC connects to directly."""
    host: str
    """The host that is reached through the proxy."""

    def __str__(self) -> str:
        return (
            f"{self.variable} is set, so gRPC connects through the proxy {self.address}; add {self.host} to "
            f"{self.exceptions} to connect directly (gRPC reads names, domains and CIDR ranges there, not `*`, and "
            f"only lower-case variables)"
        )


def channel_options(host: str) -> Mapping[str, int]:
    """Return the channel options for a host: connections to this machine use no proxy."""
    return NO_PROXY if is_loopback(host) else {}


def proxy_of(host: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy through which a FedMTL client reaches a host; None if it connects directly."""
    return None if is_loopback(host) else proxy_of_grpc(host, environment)


def proxy_of_grpc(host: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy through which gRPC reaches a host without channel options; None if it connects directly."""
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
    """Return a proxy's address without user and password; empty if gRPC doesn't use it."""
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]  # accepts malformed addresses too
    return f"http://{authority}" if scheme == "http" else ""


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of `no_proxy` matches a host: by its name, a parent domain, or an address range."""
    name, domain = host.lower(), entry.lower().removeprefix(".")
    if name == domain or name.endswith(f".{domain}"):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
