"""A whole server: model, run folder, federation and gRPC put together, started and stopped."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedmtl_core.addresses import is_loopback, join_address
from fedmtl_core.config import Config, contradictions
from fedmtl_core.errors import ConfigError, FedMTLError, RunStoppedError
from fedmtl_core.logs import get_logger
from fedmtl_core.model.sharing import blocks_of, movable_parts
from fedmtl_core.runtime.keepalive import keepalive
from fedmtl_core.wire.layout import Layout
from fedmtl_server.access.gate import Gate
from fedmtl_server.access.limiting import grpc_options, with_limits
from fedmtl_server.access.tls import is_authenticating, require_safe, server_credentials
from fedmtl_server.aggregation.aggregator import MTLAggregator
from fedmtl_server.aggregation.auxiliary import Auxiliary
from fedmtl_server.aggregation.control_variates import ControlVariates
from fedmtl_server.aggregation.norms import NormRule
from fedmtl_server.aggregation.optimizer_state import OptimizerState
from fedmtl_server.aggregation.optimizers import make_optimizer
from fedmtl_server.aggregation.task_weighting import make_weighting
from fedmtl_server.aggregation.task_weighting.base import WeightingSettings
from fedmtl_server.aggregation.task_weighting.shares import Examples
from fedmtl_server.commits import Commits
from fedmtl_server.federation import Federation
from fedmtl_server.model import MTLServerModel
from fedmtl_server.monitoring.setup import Monitoring
from fedmtl_server.monitoring.tracking import Outcome, TrackedRun, Tracking, round_point, trackers_for
from fedmtl_server.recovery import recovered_updates
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.rounds.task_selection import make_selection
from fedmtl_server.rpc import reflection
from fedmtl_server.rpc.servicer import SERVICE_NAME, FederatedMtlServicer
from fedmtl_server.sharing.layer_moves import Mover
from fedmtl_server.sharing.policies import SharingPolicy, make_policy
from fedmtl_server.storage.folders import held_run, unfinished_run
from fedmtl_server.storage.results import TaskResult, plot
from fedmtl_server.storage.store import RunStore, without_secrets
from fedmtl_server.transfer.buffers import BufferPool
from fedmtl_server.transfer.staging import MIN_UPDATES_IN_MEMORY, StagingArea

GRACE_S = 5.0
"""How long calls in progress may take to end when the server stops."""

_OPTIONS = {
    # gRPC keeps what a connection read into; with hundreds of them that is most of the memory.
    "grpc.experimental.tcp_max_read_buffer_size": 128 * 1024,
    "grpc.so_reuseport": 0,  # a port in use is an error, not a second server behind it
    **keepalive(20.0, 10.0),  # a client that vanished without a word is noticed, and gone, within half a minute
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    "grpc.http2.max_ping_strikes": 0,
}


class Server:
    """One run, served. A run that the folder holds already is taken up where it was left.

    Args:
        config: what to run.
        run_dir: the run's folder; one in `server.runs_dir` if None.
        model: the model to train; the one that the configuration names if None.
        finished: whether the run may be over; its model is handed out then.

    Raises:
        ConfigError: the configuration names no task, contradicts the run that the folder holds, would let anybody in
            by accident, or names a class that can't be had.
        ModelUnavailableError: the encoder can't be had.
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
        require_safe(config)
        if not config.tasks:
            raise ConfigError("tasks: name at least one task, such as `tasks: {sst2: {}}`")
        if not config.tasks.keys() - config.auxiliary_tasks():
            raise ConfigError(f"tasks: {', '.join(config.tasks)}: at least one has to be another than auxiliary")
        self.address = ""
        self.store: RunStore
        self.federation: Federation
        self._config = config
        self._run_dir = run_dir
        self._may_be_over = finished
        self._outcome: Outcome = "stopped"
        self._trackers = trackers_for(config)
        self._monitoring = Monitoring.of(config)
        self._gate = Gate(config) if is_authenticating(config) else None
        self._held_id = _held_run_id(run_dir, config) if run_dir else None
        self._run_id = self._held_id or uuid.uuid4().hex
        self._log = get_logger()
        optimizer = make_optimizer(config.server_optimizer)  # before anything that takes long
        policy = make_policy(config.sharing.adaptive)
        self._weighting = make_weighting(config.aggregation)
        self._selection = make_selection(config.rounds.task_selection)
        if policy and not self._weighting:  # it looks at every task's mean
            self._weighting = Examples(WeightingSettings())
        if model is None:
            self._log.info("model.loading", source=config.model.server_model)
            model = MTLServerModel.from_config(config, weights=self._held_id is None)
        self._model = model
        layouts = model.layouts_for(None)
        self._optimizer = OptimizerState(optimizer, layouts) if optimizer else None
        self._mover = self._make_mover(policy) if policy else None
        self._controls = _controls(model) if config.training.control_variates else None
        self._log_model()

    async def start(self) -> None:
        """Begin to serve; `address` says where.

        Raises:
            FedMTLError: the address can't be listened on; nothing is left behind then.
            ConfigError: the certificate can't be used; likewise.
            StoreError: the run's folder can't be made, read or locked, or the clients not be read.
        """
        options = [*_OPTIONS.items(), *grpc_options(self._config.limits)]
        self._server = grpc.aio.server(interceptors=self._interceptors(), options=options)
        self._listen()
        self._monitoring.listen()
        if self._gate:
            await self._gate.open()
        await asyncio.to_thread(self._open_store)
        FederatedMtlServicer(self.federation).add_to(self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.add_to(self._server, (SERVICE_NAME, health.SERVICE_NAME))
        await self._server.start()
        await self._set_health(serving=True)
        self.store.announce(self.address)
        self._log.info("server.started", address=self.address, run_id=self._run_id, run_dir=str(self.store.run_dir))
        self._log_security()
        self._tracking.start()
        self._monitoring.start(self.federation)

    async def run(self) -> dict[str, TaskResult]:
        """Hold the rounds until the run is over, and write its results.

        Returns:
            Every task's metric by round.
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
        """Stop serving: first let clients leave by themselves for a while, then end their streams."""
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
                f"can't listen on {address}: the port is taken or the address isn't this machine's; "
                "choose another with --port or --host"
            ) from None

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """What a call passes before the servicer, in this order."""
        config = self._config
        inner = [self._gate.interceptor] if self._gate else []
        limited = with_limits(config.limits, config.rounds.transfer_timeout_s, inner)
        return [*self._monitoring.interceptors, *limited]

    def _open_store(self) -> None:
        """Begin the run, or take it up."""
        components = self._model.components
        if self._held_id is None or self._run_dir is None:
            if self._run_dir is None:
                self._warn_of_unfinished()
            self.store = RunStore.create(self._config, self._run_id, components, self._model.summary(), self._run_dir)
            self.federation = self._make_federation()
            return
        self.store = RunStore.resume(self._config, self._run_id, self._run_dir, finished=self._may_be_over)
        remembering = [one for one in (self._optimizer, self._controls) if one]
        state_layouts = [layout for one in remembering for layout in one.layouts]
        left_off = self.store.left_off(
            [component.layout for component in components.values()], state_layouts, self._moved_layouts
        )
        if self._mover and left_off.reports:
            self._mover.take_up(left_off.reports[-1].sharing, left_off.reports[-1].sharing_state)
        table = self._mover.table if self._mover else self._model.sharing
        self._model.rearrange(table, left_off.components)
        if self._optimizer:
            self._optimizer.begin(self._model.layouts_for(None))
        self.federation = self._make_federation()
        self.federation.resume(left_off, recovered_updates(self.store, left_off, self._model, self._config))

    def _make_mover(self, policy: SharingPolicy) -> Mover:
        section = self._config.sharing
        layers = movable_parts(section.rules(), section.adaptive.layers)
        return Mover(policy, self._model, layers, section.adaptive.max_parameters)

    def _moved_layouts(self, sharing: Mapping[str, Any]) -> tuple[list[Layout], list[Layout]]:
        """Of the model whose layers have moved as a report says, and of what its optimiser remembers."""
        table = self._model.table_of({part: blocks_of(blocks) for part, blocks in sharing.items()})
        layouts = self._model.layouts_of(table)
        return layouts, self._optimizer.layouts_of(layouts) if self._optimizer else []

    def _warn_of_unfinished(self) -> None:
        """Say it if the run that begins could have been an earlier one's going on."""
        earlier = unfinished_run(self._config)
        if earlier is not None:
            self._log.warning(
                "run.begins_anew",
                unfinished=str(earlier),
                reason="a run of the same configuration is there, and isn't over",
                take_it_up_with=f"fedmtl-server --resume {earlier}",
            )

    def _make_federation(self) -> Federation:
        config = self._config
        run = TrackedRun.of(self._run_id, self.store.run_dir, without_secrets(config))
        self._tracking = Tracking(self._trackers, run, lambda: [round_point(one) for one in self.store.reports()])
        aggregator = MTLAggregator(
            _norms(config),
            self._weighting,
            config.training.seed,
            _auxiliary(config),
            config.aggregation.normalization,
            config.robustness.max_client_share,
        )
        staging = self._make_staging()
        return Federation(
            run_id=self._run_id,
            commits=Commits(
                self._model,
                aggregator,
                self.store,
                staging,
                optimizer=self._optimizer,
                controls=self._controls,
                mover=self._mover,
            ),
            specs=config.task_specs(),
            aggregator=aggregator,
            rules=RoundRules.from_config(config, self._selection),
            plans={
                task: replace(config.plan(task), local=self._model.sharing.local_for(task)) for task in config.tasks
            },
            store=self.store,
            staging=staging,
            early_stopping=config.early_stopping,
            topk_density=config.wire.topk_density,
            report_interval_s=config.rounds.report_interval_s,
            listeners=[self._tracking, *self._monitoring.listeners],
        )

    def _make_staging(self) -> StagingArea:
        """Room for updates; the pool keeps what a round uses at its height: the model before, and each task's mean."""
        config, model = self._config, self._model
        budget = config.server.staging_memory_mb * 2**20
        largest = max(sum(layout.num_bytes for layout in model.layouts_for(task)) for task in model.tasks)
        whole = sum(component.layout.num_bytes for component in model.components.values())
        means = {scope: len(model.sharing.members(scope)) - 1 for scope in model.components} if self._weighting else {}
        others = sum(count * model.components[scope].layout.num_bytes for scope, count in means.items())
        growth = config.sharing.adaptive.max_parameters if self._mover else 1
        controls = sum(layout.num_bytes for layout in self._controls.layouts) if self._controls else 0
        pool = BufferPool(max(budget, MIN_UPDATES_IN_MEMORY * largest) + int(growth * (whole + others)) + controls)
        return StagingArea(budget, self.store.spool, pool, durable=config.store.durability != "memory")

    def _log_model(self) -> None:
        summary = self._model.summary()
        self._log.info(
            "model.ready",
            base_model=summary.base_model,
            tasks=", ".join(summary.head_parameters),
            shared_parameters=summary.shared_parameters,
            head_parameters=dict(summary.head_parameters),
            **({} if self._model.sharing.is_one_model else {"scope_parameters": dict(summary.scope_parameters)}),
            total_parameters=summary.total_parameters,
        )

    def _log_security(self) -> None:
        tls = self._config.security.tls
        transport = "mutual TLS" if tls.client_ca else "TLS" if tls.certificate else "plaintext"
        facts = {"transport": transport, "authentication": "on" if self._gate else "off"}
        if is_loopback(self._config.server.host) or (tls.certificate and self._gate):
            self._log.info("server.secured", **facts)
        else:
            self._log.warning("server.insecure", **facts, host=self._config.server.host)

    def _write_results(self, results: dict[str, TaskResult]) -> None:
        if self.store.is_over():  # they are there
            return
        plot(results, self.store.run_dir / "metrics.png")
        self.store.write_results({task: result.to_dict() for task, result in results.items()})

    async def _set_health(self, *, serving: bool) -> None:
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        for service in ("", SERVICE_NAME):
            await self._health.set(service, status)


def _held_run_id(run_dir: Path, config: Config) -> str | None:
    """The id of the run that a folder holds, whose configuration this must not contradict."""
    held = held_run(run_dir)
    if held is None:
        return None
    run_id, stored = held
    if problems := contradictions(stored, config):
        raise ConfigError(
            f"{run_dir} holds a run of another configuration: {'; '.join(problems)}. Begin a new run with another "
            f"--run-dir, or remove that folder if its run isn't wanted"
        )
    return run_id


def _norms(config: Config) -> NormRule:
    section = config.robustness.norms
    return NormRule(section.action, section.bound, section.median_factor, section.window, section.model_factor)


def _controls(model: MTLServerModel) -> ControlVariates:
    members = {scope: model.sharing.members(scope) for scope in model.components}
    return ControlVariates(model.layouts_for(None), members)


def _auxiliary(config: Config) -> dict[str, Auxiliary]:
    sections = {name: task.auxiliary for name, task in config.tasks.items()}
    return {name: Auxiliary(one.weight, one.decay) for name, one in sections.items() if one is not None}


async def _either(work: Coroutine[Any, Any, None], other: asyncio.Future[Any], timeout_s: float) -> None:
    """Wait for one of two, but only so long."""
    task = asyncio.create_task(work)
    await asyncio.wait((task, other), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()


async def serve(
    server: Server,
    told_to_stop: asyncio.Event,
    *,
    keep_serving: bool = False,
    on_started: Callable[[], None] = lambda: None,
    on_finished: Callable[[dict[str, TaskResult]], None] = lambda results: None,
) -> None:
    """Run a server until its run is over, or with `keep_serving` until it is told to stop.

    Args:
        server: not started yet.
        told_to_stop: set to have it stop in order.
        keep_serving: go on handing out the final model.
        on_started: called when clients can come.
        on_finished: told the results, once they are in the run's folder.

    Raises:
        RunStoppedError: it was told to stop before the run was over. What was acknowledged is kept for the server that
            takes the run up.
    """
    await server.start()
    on_started()
    stop = asyncio.create_task(told_to_stop.wait())
    run = asyncio.create_task(server.run())
    try:
        await asyncio.wait((run, stop), return_when=asyncio.FIRST_COMPLETED)
        if not run.done():
            raise RunStoppedError(f"the run in {server.store.run_dir} was stopped before it was over")
        on_finished(run.result())
        if keep_serving:
            await stop
        else:
            await _either(server.federation.until_all_know(), stop, server.federation.rules.rounds.quorum_timeout_s)
    finally:
        finished = run.done() and run.exception() is None
        for task in (run, stop):
            task.cancel()
        await asyncio.gather(run, stop, return_exceptions=True)
        await server.stop("the run is over" if finished else "the server is stopping", GRACE_S if finished else 0.0)
