"""Starts and stops a whole server: the model, the run folder, the federation and gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedmtl_core.addresses import is_loopback, join_address
from fedmtl_core.config import Config
from fedmtl_core.errors import FedMTLError, RunStoppedError
from fedmtl_core.logs import get_logger
from fedmtl_core.runtime.keepalive import keepalive
from fedmtl_server.access.limiting import grpc_options, with_limits
from fedmtl_server.access.tls import server_credentials
from fedmtl_server.assembly import Assembly
from fedmtl_server.federation import Federation
from fedmtl_server.model import MTLServerModel
from fedmtl_server.monitoring.tracking import Outcome
from fedmtl_server.rpc import reflection
from fedmtl_server.rpc.servicer import SERVICE_NAME, FederatedMtlServicer
from fedmtl_server.storage.paths import PLOT_FILE, SHARING_PLOT_FILE
from fedmtl_server.storage.results import TaskResult, plot
from fedmtl_server.storage.sharing_plot import plot_sharing
from fedmtl_server.storage.sharing_timeline import sharing_timeline
from fedmtl_server.storage.store import RunStore

GRACE_S = 5.0
"""The time that calls in progress have to end when the server stops, in seconds."""

_OPTIONS = {
    # gRPC keeps the read buffer of every connection; with hundreds of connections the buffers take most of the memory.
    "grpc.experimental.tcp_max_read_buffer_size": 128 * 1024,
    "grpc.so_reuseport": 0,  # a port in use is an error; the port must not be shared with another server
    **keepalive(20.0, 10.0),  # a client that vanished silently is detected and removed within half a minute
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    "grpc.http2.max_ping_strikes": 0,
}


class Server:
    """Serves one run. If the run folder already has a run, the server resumes it.

    Args:
        config: the configuration of the run.
        run_dir: the run folder; a new one in `server.runs_dir` if None.
        model: the model to train; if None, the model that the configuration names.
        finished: whether the run may be over already; the server then serves its final model.

    Raises:
        ConfigError: the configuration names no task, contradicts the run in the folder, would admit any client by
            accident, or names a class that can't be loaded.
        ModelUnavailableError: the encoder can't be loaded.
        StoreError: the folder can't be read.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path | None = None,
        model: MTLServerModel | None = None,
        *,
        finished: bool = False,
    ):
        self._assembly = Assembly(config, run_dir, model, finished=finished)
        self.address = ""
        self.store: RunStore
        self.federation: Federation
        self._config = config
        self._outcome: Outcome = "stopped"
        self._monitoring, self._gate = self._assembly.monitoring, self._assembly.gate
        self._log = get_logger()
        self._log_model()

    async def start(self) -> None:
        """Start serving, and set `address`.

        Raises:
            FedMTLError: the server can't listen on the address; no file was written.
            ConfigError: the certificate can't be used; no file was written.
            StoreError: the run folder can't be made, read or locked, or the client registry can't be read.
        """
        options = [*_OPTIONS.items(), *grpc_options(self._config.limits)]
        self._server = grpc.aio.server(interceptors=self._interceptors(), options=options)
        self._listen()
        self._monitoring.listen()
        if self._gate:
            await self._gate.open()
        opened = await asyncio.to_thread(self._assembly.open)
        self.store, self.federation, self._tracking = opened.store, opened.federation, opened.tracking
        FederatedMtlServicer(self.federation).add_to(self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.add_to(self._server, (SERVICE_NAME, health.SERVICE_NAME))
        await self._server.start()
        await self._set_health(serving=True)
        self.store.announce(self.address)
        self._log.info(
            "server.started", address=self.address, run_id=self._assembly.run_id, run_dir=str(self.store.run_dir)
        )
        self._log_security()
        self._tracking.start()
        self._monitoring.start(self.federation)

    async def run(self) -> dict[str, TaskResult]:
        """Drive the rounds to the end of the run, and write its results.

        Returns:
            Every task's main metric by round.
        """
        try:
            await self.federation.run()
            results = self.federation.results()
            await asyncio.to_thread(self._write_results, results)
        except Exception:
            self._outcome = "failed"
            raise
        self._outcome = "finished"
        return results

    async def stop(self, reason: str, patience_s: float = 0.0) -> None:
        """Stop serving: wait up to `patience_s` for the clients to leave, then end their streams."""
        await self._set_health(serving=False)
        await self.federation.stop(reason, patience_s)
        await self._server.stop(GRACE_S)
        await self._tracking.close(self._outcome)
        await self._monitoring.close()
        if self._outcome == "finished":
            await asyncio.to_thread(self.store.finish)
        await asyncio.to_thread(self.store.close)
        if self._gate:
            await self._gate.close()
        self._log.info("server.stopped", reason=reason)

    def _listen(self) -> None:
        host = self._config.server.host
        address = join_address(host, self._config.server.port)
        tls = self._config.security.tls
        credentials = server_credentials(tls) if tls.certificate else None
        try:
            if credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, credentials)
            self.address = join_address(host, bound)
        except RuntimeError:
            raise FedMTLError(
                f"can't listen on {address}: the port is in use, or the address does not belong to this machine; "
                "choose another with --port or --host"
            ) from None

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """Return the interceptors that a call passes before the servicer, in order."""
        config = self._config
        inner = [self._gate.interceptor] if self._gate else []
        limited = with_limits(config.limits, config.rounds.transfer_timeout_s, inner)
        return [*self._monitoring.interceptors, *limited]

    def _log_model(self) -> None:
        model = self._assembly.model
        summary = model.summary()
        self._log.info(
            "model.ready",
            base_model=summary.base_model,
            tasks=", ".join(summary.head_parameters),
            shared_parameters=summary.shared_parameters,
            head_parameters=dict(summary.head_parameters),
            **({} if model.sharing.is_one_model else {"scope_parameters": dict(summary.scope_parameters)}),
            total_parameters=summary.total_parameters,
            **({"frozen_parameters": summary.frozen_parameters} if summary.frozen_parameters else {}),
        )

    def _log_security(self) -> None:
        tls = self._config.security.tls
        transport = "mutual TLS" if tls.client_ca else "TLS" if tls.certificate else "plaintext"
        settings = {"transport": transport, "authentication": "on" if self._gate else "off"}
        if is_loopback(self._config.server.host) or (tls.certificate and self._gate):
            self._log.info("server.secured", **settings)
        else:
            self._log.warning("server.insecure", **settings, host=self._config.server.host)

    def _write_results(self, results: dict[str, TaskResult]) -> None:
        if self.store.is_over():  # the results were written before
            return
        plot(results, self.store.run_dir / PLOT_FILE)
        timeline = sharing_timeline(self._config, self.federation.model.parts, self.store.reports())
        if not timeline.is_plain:
            plot_sharing(timeline, self.store.run_dir / SHARING_PLOT_FILE)
        self.store.write_results({task: result.to_dict() for task, result in results.items()})

    async def _set_health(self, *, serving: bool) -> None:
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        for service in ("", SERVICE_NAME):
            await self._health.set(service, status)


async def _either(work: Coroutine[Any, Any, None], other: asyncio.Future[Any], timeout_s: float) -> None:
    """Wait until the work or the other future is done, at most `timeout_s` seconds, and cancel the work."""
    task = asyncio.create_task(work)
    await asyncio.wait((task, other), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()


async def serve(
    server: Server,
    stop_requested: asyncio.Event,
    *,
    keep_serving: bool = False,
    on_started: Callable[[], None] = lambda: None,
    on_finished: Callable[[dict[str, TaskResult]], None] = lambda results: None,
) -> None:
    """Run a server until its run is over, or with `keep_serving` until a stop is requested.

    Args:
        server: a server that has not been started.
        stop_requested: an event that, once set, makes the server shut down in order.
        keep_serving: whether to keep serving the final model after the end of the run.
        on_started: called when clients can connect.
        on_finished: called with the results after they were written to the run folder.

    Raises:
        RunStoppedError: a stop was requested before the run was over. Acknowledged updates are kept for the server
            that resumes the run.
    """
    await server.start()
    on_started()
    stop = asyncio.create_task(stop_requested.wait())
    run = asyncio.create_task(server.run())
    try:
        await asyncio.wait((run, stop), return_when=asyncio.FIRST_COMPLETED)
        if not run.done():
            raise RunStoppedError(f"the run in {server.store.run_dir} was stopped before it was over")
        on_finished(run.result())
        if keep_serving:
            await stop
        else:
            await _either(server.federation.drain(), stop, server.federation.rules.rounds.quorum_timeout_s)
    finally:
        finished = run.done() and run.exception() is None
        for task in (run, stop):
            task.cancel()
        await asyncio.gather(run, stop, return_exceptions=True)
        await server.stop("the run is over" if finished else "the server is stopping", GRACE_S if finished else 0.0)
