"""OpenTelemetry traces, exported by OTLP over gRPC from a separate thread.

OpenTelemetry's own gRPC instrumentation iterates over the values that an asynchronous handler yields. FedMTL's handlers
write to their context instead. So calls are traced by hand, with the W3C `traceparent` in their metadata.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fedmtl_core.runtime.tracing import CLOSE_S, Tracing

_PROPAGATOR = TraceContextTextMapPropagator()


class OpenTelemetryTracing(Tracing):
    """Records spans with OpenTelemetry.

    Args:
        service: the service name of this process.
        endpoint: the collector's address; None for the one in OpenTelemetry's environment variables.
    """

    def __init__(self, service: str, endpoint: str | None = None):
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("fedmtl")

    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[Span]:
        return self._tracer.start_as_current_span(name, attributes=_prefixed(attributes), record_exception=False)

    def call(self, name: str) -> AbstractContextManager[Span]:
        return self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, record_exception=False)

    def headers(self) -> tuple[tuple[str, str], ...]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return tuple(carrier.items())

    def answer(self, name: str, metadata: Iterable[tuple[str, str | bytes]]) -> AbstractContextManager[Span]:
        """Return the span of answering a call, a child of the caller's span.

        Args:
            name: the call.
            metadata: the call's metadata; an invalid `traceparent` is ignored.
        """
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        return self._tracer.start_as_current_span(
            name, context=_PROPAGATOR.extract(carrier), kind=SpanKind.SERVER, record_exception=False
        )

    def current(self) -> SpanContext:
        """Return the context of the current span."""
        return get_current_span().get_span_context()

    def add(self, name: str, parent: SpanContext, began_ns: int, **attributes: str | int) -> None:
        """Add a span that ends now, as a child of a span that may have ended.

        Args:
            name: the span's name.
            parent: the parent span's context.
            began_ns: the start of the span, in nanoseconds since the Unix epoch.
            attributes: the span's attributes.
        """
        within = set_span_in_context(NonRecordingSpan(parent))
        self._tracer.start_span(name, within, attributes=_prefixed(attributes), start_time=began_ns).end()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        # The shutdown waits for an unreachable collector. A daemon thread doesn't keep the process alive if it hangs.
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(timeout_s)


def _prefixed(attributes: dict[str, str | int]) -> dict[str, str | int]:
    return {f"fedmtl.{key}": value for key, value in attributes.items()}
