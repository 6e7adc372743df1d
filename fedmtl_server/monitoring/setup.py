"""A server's configured monitoring: metrics and traces. If they are off, nothing is imported."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime.tracing import OFF, Tracing
from fedmtl_core.runtime.tracing_setup import tracing_for
from fedmtl_server.events import Listener

if TYPE_CHECKING:
    from fedmtl_server.federation import Federation
    from fedmtl_server.monitoring.metrics import Metrics, MetricsServer
    from fedmtl_server.monitoring.spans import ServerSpans


class Monitoring:
    """A server's monitoring.

    Args:
        tracing: the destination of spans.
        metrics: the metrics to serve; None if they are off.
        host: address on which metrics are served.
        port: port on which metrics are served.
    """

    def __init__(self, tracing: Tracing, metrics: Metrics | None, host: str, port: int):
        self._tracing = tracing
        self._spans = _spans(tracing)
        self._metrics = metrics
        self._host = host
        self._port = port
        self._server: MetricsServer | None = None

    @classmethod
    def of(cls, config: Config) -> Monitoring:
        """Return the monitoring that a configuration asks for.

        Raises:
            ConfigError: a package that it needs isn't installed.
        """
        host, port = config.server.metrics_host, config.server.metrics_port
        tracing = tracing_for(config.tracing, "fedmtl-server")
        if port is None:
            return cls(tracing, None, host, 0)
        try:
            from fedmtl_server.monitoring.metrics import Metrics
        except ImportError as error:
            raise ConfigError(
                f"server.metrics_port: metrics can't be served: {error}. Install the extra: "
                "pip install 'fedmtl[prometheus]'"
            ) from None
        return cls(tracing, Metrics(list(config.tasks)), host, port)

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listeners for events of the run."""
        return [one for one in (self._metrics, self._spans) if one is not None]

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """The outermost interceptors."""
        return [one.interceptor for one in (self._metrics, self._spans) if one is not None]

    @property
    def metrics_address(self) -> str | None:
        """The address at which metrics are served; None if they aren't."""
        return self._server.address if self._server else None

    def listen(self) -> None:
        """Listen on the address.

        Raises:
            FedMTLError: the server can't listen on it.
        """
        if self._metrics:
            from fedmtl_server.monitoring.metrics import MetricsServer

            self._server = MetricsServer(self._host, self._port, self._metrics.registry)

    def start(self, federation: Federation) -> None:
        """Start to answer scrapes, for a run on this event loop."""
        if self._metrics and self._server:
            from fedmtl_server.monitoring.metrics import RunCollector

            self._metrics.registry.register(RunCollector(self._metrics, federation, asyncio.get_running_loop()))
            self._server.start()

    async def close(self) -> None:
        """Stop answering scrapes, and export the last spans."""
        if self._server:
            await asyncio.to_thread(self._server.close)
        await asyncio.to_thread(self._tracing.close)


def _spans(tracing: Tracing) -> ServerSpans | None:
    if tracing is OFF:
        return None
    from fedmtl_core.runtime.otel import OpenTelemetryTracing
    from fedmtl_server.monitoring.spans import ServerSpans

    assert isinstance(tracing, OpenTelemetryTracing)
    return ServerSpans(tracing)
