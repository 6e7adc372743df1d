"""Addresses: how they are written, and which ones only this machine can reach."""

from __future__ import annotations

import ipaddress


def without_brackets(host: str) -> str:
    """A host, an IPv6 address without the brackets that it has before a port."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def join_address(host: str, port: int) -> str:
    """`HOST:PORT`, an IPv6 address in brackets."""
    bare = without_brackets(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def host_of(address: str) -> str:
    """The host of a `HOST:PORT`, an IPv6 address without its brackets."""
    return without_brackets(address.rpartition(":")[0])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host: `localhost`, 127.0.0.0/8 or ::1. Other names aren't looked up."""
    bare = without_brackets(host).rstrip(".").lower()
    if bare == "localhost":
        return True
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
