"""The FedMTL server: the model, rounds and their participants, aggregation, and durable storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmtl_server.api import Server

__all__ = ["Server"]


def __getattr__(name: str) -> object:
    """Import `fedmtl_server.Server` on first use: importing PyTorch takes seconds, and `--help` does not need it."""
    if name in __all__:
        from fedmtl_server import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
