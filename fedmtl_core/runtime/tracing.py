"""Traces of what a process does, as the rest of FedMTL sees them. Off, they cost nothing and nothing is imported."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

CLOSE_S = 5.0
"""How long a process that ends waits for its last spans to be taken."""


class Tracing:
    """No traces at all."""

    def span(self, name: str, **facts: str | int) -> AbstractContextManager[object]:
        """A span of what is done within, a child of the one around it."""
        return nullcontext()

    def call(self, name: str) -> AbstractContextManager[object]:
        """Likewise, of a call to another process."""
        return nullcontext()

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What tells the process that is called of the span it is called in."""
        return ()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Have what is there exported, for so long at most."""


OFF = Tracing()
