"""Addresses: which ones only this machine can reach."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host: `localhost`, 127.0.0.0/8 or ::1. Other names aren't looked up."""
    bare = host.strip("[]").rstrip(".").lower()
    if bare == "localhost":
        return True
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def host_of(address: str) -> str:
    """The host of a `HOST:PORT`, an IPv6 address without its brackets."""
    return address.rpartition(":")[0].strip("[]")
