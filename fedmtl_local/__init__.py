"""Runs a whole federation on one machine: a server and its clients as separate processes, from one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmtl_local.launcher import run_local

__all__ = ["run_local"]


def __getattr__(name: str) -> object:
    """Import `fedmtl_local.run_local` on first use: importing PyTorch takes seconds, and `--help` does not need it."""
    if name in __all__:
        from fedmtl_local import launcher

        return getattr(launcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
