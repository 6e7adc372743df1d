"""Addresses: their notation, and whether only this machine can reach them."""

from __future__ import annotations

import ipaddress


def without_brackets(host: str) -> str:
    """Return a host without the brackets that an IPv6 address has before a port."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def join_address(host: str, port: int) -> str:
    """Return `HOST:PORT`, with an IPv6 address in brackets."""
    bare = without_brackets(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def host_of(address: str) -> str:
    """Return the host of a `HOST:PORT`, an IPv6 address without brackets."""
    return without_brackets(address.rpartition(":")[0])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host: `localhost`, 127.0.0.0/8 or ::1. Other names aren't resolved."""
    bare = without_brackets(host).rstrip(".").lower()
    if bare == "localhost":
        return True
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
