"""What watches a server from outside, as it is configured: metrics and traces. Off, it imports nothing."""

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
        tracing: where spans go.
        metrics: what is counted, if it is.
        host: where metrics are served.
        port: likewise.
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
        """As a configuration has it.

        Raises:
            ConfigError: a package that it takes isn't installed.
        """
        host, port = config.server.metrics_host, config.server.metrics_port
        tracing = tracing_for(config.tracing, "fedmtl-server")
        if port is None:
            return cls(tracing, None, host, 0)
        try:
            from fedmtl_server.monitoring.metrics import Metrics
        except ImportError as error:
            raise ConfigError(
                f"server.metrics_port: metrics can't be served: {error}. Install what they take: "
                "pip install 'fedmtl[prometheus]'"
            ) from None
        return cls(tracing, Metrics(list(config.tasks)), host, port)

    @property
    def listeners(self) -> Sequence[Listener]:
        """Those to tell what happens in the run."""
        return [one for one in (self._metrics, self._spans) if one is not None]

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """Those that go around all others."""
        return [one.interceptor for one in (self._metrics, self._spans) if one is not None]

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are served, if they are."""
        return self._server.address if self._server else None

    def listen(self) -> None:
        """Take the address.

        Raises:
            FedMTLError: it can't be had.
        """
        if self._metrics:
            from fedmtl_server.monitoring.metrics import MetricsServer

            self._server = MetricsServer(self._host, self._port, self._metrics.registry)

    def start(self, federation: Federation) -> None:
        """Begin to answer, for a run on this event loop."""
        if self._metrics and self._server:
            from fedmtl_server.monitoring.metrics import RunCollector

            self._metrics.registry.register(RunCollector(self._metrics, federation, asyncio.get_running_loop()))
            self._server.start()

    async def close(self) -> None:
        """Stop answering, and have the last spans exported."""
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
