"""The FedMTL client: takes a slice, trains it on data that stays where it lies, and sends the update back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmtl_client.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> object:
    """`fedmtl_client.Client`, imported when it is asked for: PyTorch takes seconds, which `--help` needn't wait for."""
    if name in __all__:
        from fedmtl_client import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
