"""The tracing interface. Its default implementation records nothing, costs nothing and imports nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

CLOSE_S = 5.0
"""Longest wait for the export of the last spans when a process ends, in seconds."""


class Tracing:
    """Records no traces."""

    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[object]:
        """Return a context manager for a span, a child of the current span."""
        return nullcontext()

    def call(self, name: str) -> AbstractContextManager[object]:
        """Return a context manager for the span of a call to another process."""
        return nullcontext()

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata that tells the called process the current span."""
        return ()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Export the remaining spans, for at most this time."""


OFF = Tracing()
