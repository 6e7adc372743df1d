"""Makes the tracing that a configuration asks for. OpenTelemetry is imported only if tracing is enabled."""

from __future__ import annotations

from fedmtl_core.config import TracingConfig
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime.tracing import OFF, Tracing


def tracing_for(config: TracingConfig, service: str) -> Tracing:
    """Return the tracing implementation that is configured.

    Args:
        config: the configuration's section `tracing`.
        service: the service name of this process, unless OTEL_SERVICE_NAME is set.

    Raises:
        ConfigError: OpenTelemetry isn't installed.
    """
    if not config.enabled:
        return OFF
    try:
        from fedmtl_core.runtime.otel import OpenTelemetryTracing
    except ImportError as error:
        raise ConfigError(
            f"tracing.enabled: OpenTelemetry can't be imported: {error}. Install it: pip install 'fedmtl[otel]'"
        ) from None
    return OpenTelemetryTracing(service, config.endpoint)
