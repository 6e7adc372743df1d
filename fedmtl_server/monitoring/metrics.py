"""Metrics for Prometheus: `/metrics` over plain HTTP, in threads of its own.

Values that the server has anyway (bytes, clients, staged updates) are read at each scrape, on the event loop. Only
events that happen once per call or once per round are counted as they happen.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import grpc
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.registry import Collector

from fedmtl_core.addresses import is_loopback, join_address, without_brackets
from fedmtl_core.errors import FedMTLError
from fedmtl_core.logs import get_logger
from fedmtl_core.model.scopes import SHARED, task_scope
from fedmtl_core.wire.updates import Update
from fedmtl_server.events import Listener
from fedmtl_server.federation import Federation
from fedmtl_server.rounds.report import RefusedUpdate, RoundReport
from fedmtl_server.rounds.transitions import Phase
from fedmtl_server.rounds.warnings import WarningKind
from fedmtl_server.rpc.call_interceptor import AroundCalls, Call
from fedmtl_server.status import TaskStatus

UNKNOWN_TASK = "unknown"
"""The label for an update's task that isn't one of the run's: callers may send any name."""

SCRAPE_S = 5.0
"""How long a scrape waits for the event loop."""

_ROUND_S = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_UPLOAD_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1200)
_AGGREGATION_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60)
_CALL_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 600)


class Metrics(Listener):
    """The metrics counted for a run since this server's start.

    Args:
        tasks: the run's tasks.
    """

    def __init__(self, tasks: Sequence[str]):
        self._tasks = tasks
        self.bytes_in = 0
        """Bytes received in the rounds that have ended."""
        self.bytes_out = 0
        """Bytes sent in the rounds that have ended."""
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._rounds = Counter("fedmtl_rounds", "Rounds that ended", ["outcome"], registry=registry)
        self._updates = Counter(
            "fedmtl_updates",
            "Updates: accepted and refused as they arrive, counted and discarded when their round has ended",
            ["outcome", "task"],
            registry=registry,
        )
        self._discarded = Counter(
            "fedmtl_components_discarded",
            "Components left unchanged because their new value wasn't finite",
            ["scope"],
            registry=registry,
        )
        self._warnings = Counter(
            "fedmtl_round_warnings", "Warnings about the results of rounds", ["kind"], registry=registry
        )
        self._missing = Counter(
            "fedmtl_updates_missing",
            "Clients of cohorts whose round ended without their update",
            registry=registry,
        )
        self._refused = Counter("fedmtl_updates_refused", "Refused updates", ["code"], registry=registry)
        self._round_s = Histogram(
            "fedmtl_round_seconds", "Duration of rounds, from opening to commit", buckets=_ROUND_S, registry=registry
        )
        self._aggregation_s = Histogram(
            "fedmtl_aggregation_seconds",
            "Duration of rounds' aggregation, from the last update to the average",
            buckets=_AGGREGATION_S,
            registry=registry,
        )
        self._upload_s = Histogram(
            "fedmtl_upload_seconds", "Duration of accepted uploads", buckets=_UPLOAD_S, registry=registry
        )
        self._call_s = Histogram(
            "fedmtl_rpc_seconds",
            "Duration of calls, from headers to end; an event stream lasts while its client is connected",
            ["method", "code"],
            buckets=_CALL_S,
            registry=registry,
        )
        self.interceptor = AroundCalls(self._timed)
        self._begin_at_zero()

    def update_counted(self, update: Update) -> None:
        self._updates.labels("accepted", self._known(update.task)).inc()

    def update_refused(self, refusal: RefusedUpdate) -> None:
        self._updates.labels("refused", self._known(refusal.task)).inc()
        self._refused.labels(refusal.code).inc()

    def round_ended(self, report: RoundReport) -> None:
        self.bytes_in += report.bytes_received
        self.bytes_out += report.bytes_sent
        self._rounds.labels("failed" if report.failed else "committed").inc()
        self._missing.inc(len(report.missing_clients))
        for one in report.discarded:
            self._discarded.labels(one.scope).inc()
        for warning in report.warnings:
            self._warnings.labels(warning.kind).inc()
        for task in report.tasks:
            self._updates.labels("discarded" if report.failed else "counted", task.task).inc(task.num_updates)
        self._round_s.observe(report.duration_s)
        if report.purpose == "train" and not report.failed:
            self._aggregation_s.observe(report.aggregation_s)

    @contextmanager
    def _timed(self, call: Call) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._call_s.labels(call.method, call.code.name).observe(seconds)
            if call.method == "PushUpdate" and call.code is grpc.StatusCode.OK:
                self._upload_s.observe(seconds)

    def _known(self, task: str) -> str:
        return task if task in self._tasks else UNKNOWN_TASK

    def _begin_at_zero(self) -> None:
        """Create all counters: one that first appears with its first event has no rate for that event."""
        for outcome in ("committed", "failed"):
            self._rounds.labels(outcome)
        for kind in get_args(WarningKind):
            self._warnings.labels(kind)
        for scope in (SHARED, *map(task_scope, self._tasks)):
            self._discarded.labels(scope)
        for task in self._tasks:
            for outcome in ("accepted", "refused", "counted", "discarded"):
                self._updates.labels(outcome, task)


@dataclass(frozen=True)
class _Moment:
    """The values read from a run for one scrape."""

    round: int
    phase: Phase
    bytes_in: int
    bytes_out: int
    staged_bytes: int
    num_waiting: int
    tasks: Sequence[TaskStatus]


class RunCollector(Collector):
    """Reads a run at each scrape. `collect` runs in another thread than the event loop.

    Args:
        metrics: the metrics of the rounds that have ended.
        federation: the run.
        loop: its event loop.
    """

    def __init__(self, metrics: Metrics, federation: Federation, loop: asyncio.AbstractEventLoop):
        self._metrics = metrics
        self._federation = federation
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        now = asyncio.run_coroutine_threadsafe(self._moment(), self._loop).result(SCRAPE_S)
        yield GaugeMetricFamily("fedmtl_round", "The round in progress, or the next", now.round)
        phase = GaugeMetricFamily("fedmtl_phase", "1 for the phase that the run is in", labels=["phase"])
        for one in Phase:
            phase.add_metric([one.value], one is now.phase)
        yield phase
        clients = GaugeMetricFamily("fedmtl_connected_clients", "Clients that watch the run", labels=["task"])
        for task in now.tasks:
            clients.add_metric([task.task], task.connected_clients)
        yield clients
        yield CounterMetricFamily("fedmtl_received_bytes", "Bytes of received updates", now.bytes_in)
        yield CounterMetricFamily("fedmtl_sent_bytes", "Bytes of sent slices", now.bytes_out)
        yield GaugeMetricFamily("fedmtl_staged_bytes", "Bytes of updates in memory, not averaged yet", now.staged_bytes)
        yield GaugeMetricFamily("fedmtl_updates_waiting", "Updates that wait for space", now.num_waiting)

    async def _moment(self) -> _Moment:
        federation, metrics = self._federation, self._metrics
        status = federation.status()
        return _Moment(
            round=status.round,
            phase=status.phase,
            bytes_in=metrics.bytes_in + federation.stats.bytes_received,
            bytes_out=metrics.bytes_out + federation.stats.bytes_sent,
            staged_bytes=federation.staging.used_bytes,
            num_waiting=federation.staging.num_waiting,
            tasks=status.tasks,
        )


class MetricsServer:
    """Serves a registry at `/metrics`.

    Args:
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        registry: the registry to serve.

    Raises:
        FedMTLError: the server can't listen on the address.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry):
        server_class = _HttpServer6 if ":" in host else _HttpServer
        try:
            self._http = make_server(without_brackets(host), port, _at_metrics(registry), server_class, _Handler)
        except OSError as error:
            raise FedMTLError(
                f"can't serve metrics on {join_address(host, port)}: {error.strerror or error}; choose another "
                "port with server.metrics_port, or another address with server.metrics_host"
            ) from None
        self.address = join_address(host, self._http.server_port)
        self._is_loopback = is_loopback(host)
        self._thread = threading.Thread(target=self._http.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Start to answer scrapes."""
        self._thread.start()
        log = get_logger()
        write = log.info if self._is_loopback else log.warning  # on other addresses anybody can read the metrics
        write("metrics.started", url=f"http://{self.address}/metrics")

    def close(self) -> None:
        """Stop answering scrapes."""
        if self._thread.is_alive():
            self._http.shutdown()
        self._http.server_close()


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True  # recently closed connections don't block the port


class _HttpServer6(_HttpServer):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds until a request must have arrived

    def log_message(self, format: str, *args: object) -> None:
        """Don't log scrapes."""


def _at_metrics(registry: CollectorRegistry) -> WSGIApplication:
    metrics: WSGIApplication = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"see /metrics\n"]
        return metrics(environ, start_response)

    return app
