"""Traces of what a process does, as the rest of FedMTL sees them. Off, they cost nothing and nothing is imported."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from fedmtl_core.config import TracingConfig
from fedmtl_core.errors import ConfigError

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


def tracing_for(config: TracingConfig, service: str) -> Tracing:
    """Traces as they are configured.

    Args:
        config: its section.
        service: what this process is, unless OTEL_SERVICE_NAME says otherwise.

    Raises:
        ConfigError: OpenTelemetry isn't installed.
    """
    if not config.enabled:
        return OFF
    try:
        from fedmtl_core.runtime.otel import OpenTelemetryTracing
    except ImportError as error:
        raise ConfigError(
            f"tracing.enabled: spans can't be recorded: {error}. Install what they take: pip install 'fedmtl[otel]'"
        ) from None
    return OpenTelemetryTracing(service, config.endpoint)
