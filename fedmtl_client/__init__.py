"""The FedMTL client: downloads a slice of the model, trains it on local data and uploads the update."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmtl_client.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> object:
    """Import `fedmtl_client.Client` on first access: PyTorch takes seconds to import, and `--help` doesn't need it."""
    if name in __all__:
        from fedmtl_client import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
