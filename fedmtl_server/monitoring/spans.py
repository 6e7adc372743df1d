"""The server's part of a client's trace: its answers to calls, and the commit of the client's update."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from opentelemetry.trace import SpanContext, Status, StatusCode

from fedmtl_core.runtime.otel import OpenTelemetryTracing
from fedmtl_core.wire.updates import Update
from fedmtl_server.events import Listener
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rpc.call_interceptor import OTHER, AroundCalls, Call

_UNTRACED = ("WatchRounds", OTHER)
"""Methods without spans. An event stream lasts while its client is connected, so its span would end with the run."""


class ServerSpans(Listener):
    """Records spans.

    A round belongs to the traces of all its clients, so each trace gets its own `commit`. Updates that an earlier
    server acknowledged have no `commit`.

    Args:
        tracing: the destination of the spans.
    """

    def __init__(self, tracing: OpenTelemetryTracing):
        self._tracing = tracing
        self._counted: list[tuple[Update, SpanContext]] = []
        self._closing_ns = 0
        self.interceptor = AroundCalls(self._answering)

    def update_counted(self, update: Update) -> None:
        self._counted.append((update, self._tracing.current()))

    def round_closing(self) -> None:
        self._closing_ns = time.time_ns()

    def round_ended(self, report: RoundReport) -> None:
        counted, self._counted = self._counted, []
        for update, parent in counted:
            self._tracing.add(
                "round.failed" if report.failed else "commit",
                parent,
                self._closing_ns,
                round=report.round,
                client_id=update.client_id,
                task=update.task,
            )

    @contextmanager
    def _answering(self, call: Call) -> Iterator[None]:
        if call.method in _UNTRACED:
            yield
            return
        with self._tracing.answer(call.method, call.metadata) as span:
            try:
                yield
            finally:
                span.set_attribute("rpc.system", "grpc")
                span.set_attribute("rpc.grpc.status_code", call.code.value[0])
                if call.code is not grpc.StatusCode.OK:
                    span.set_status(Status(StatusCode.ERROR, call.code.name))
