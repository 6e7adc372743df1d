"""The FedMTL server: the model, who takes part in a round, how updates are averaged, and what survives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmtl_server.api import Server

__all__ = ["Server"]


def __getattr__(name: str) -> object:
    """`fedmtl_server.Server`, imported when it is asked for: PyTorch takes seconds, which `--help` needn't wait for."""
    if name in __all__:
        from fedmtl_server import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
