"""The traces that a configuration asks for. OpenTelemetry is imported only where they are on."""

from __future__ import annotations

from fedmtl_core.config import TracingConfig
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime.tracing import OFF, Tracing


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
