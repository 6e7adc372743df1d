"""Traces by OpenTelemetry, exported by OTLP over gRPC from a thread of their own.

The instrumentation that OpenTelemetry has for gRPC iterates over what an asynchronous handler yields; FedMTL's write to
their context instead, so calls are traced here by hand, with the W3C `traceparent` in their metadata.
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
    """Records spans.

    Args:
        service: what this process is.
        endpoint: where they are exported to; as OpenTelemetry's environment variables say if None.
    """

    def __init__(self, service: str, endpoint: str | None = None):
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("fedmtl")

    def span(self, name: str, **facts: str | int) -> AbstractContextManager[Span]:
        return self._tracer.start_as_current_span(name, attributes=_attributes(facts), record_exception=False)

    def call(self, name: str) -> AbstractContextManager[Span]:
        return self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, record_exception=False)

    def headers(self) -> tuple[tuple[str, str], ...]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return tuple(carrier.items())

    def answer(self, name: str, metadata: Iterable[tuple[str, str | bytes]]) -> AbstractContextManager[Span]:
        """A span of answering a call, a child of the one that the call was made in.

        Args:
            name: the call.
            metadata: what came with it; what isn't a valid `traceparent` is passed over.
        """
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        return self._tracer.start_as_current_span(
            name, context=_PROPAGATOR.extract(carrier), kind=SpanKind.SERVER, record_exception=False
        )

    def current(self) -> SpanContext:
        """Names the span that this runs in."""
        return get_current_span().get_span_context()

    def add(self, name: str, parent: SpanContext, began_ns: int, **facts: str | int) -> None:
        """Add a span of something that ends now, as a child of one that may have ended.

        Args:
            name: what it was.
            parent: what it belongs to.
            began_ns: when it began, in nanoseconds of the Unix clock.
            facts: its attributes.
        """
        within = set_span_in_context(NonRecordingSpan(parent))
        self._tracer.start_span(name, within, attributes=_attributes(facts), start_time=began_ns).end()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        # It waits for a collector that is away; a daemon, so that one that hangs doesn't keep the process.
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(timeout_s)


def _attributes(facts: dict[str, str | int]) -> dict[str, str | int]:
    return {f"fedmtl.{key}": value for key, value in facts.items()}
