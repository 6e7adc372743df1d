"""Builds the parts of a server from its configuration. Nothing else knows all of them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from fedmtl_core.config import Config, contradictions
from fedmtl_core.errors import ConfigError
from fedmtl_core.logs import get_logger
from fedmtl_core.model.sharing import blocks_of, movable_parts
from fedmtl_server.access.gate import Gate
from fedmtl_server.access.tls import is_authenticating, require_safe
from fedmtl_server.aggregation.aggregator import MTLAggregator
from fedmtl_server.aggregation.auxiliary import Auxiliary
from fedmtl_server.aggregation.control_variates import ControlVariates
from fedmtl_server.aggregation.norms import NormRule
from fedmtl_server.aggregation.optimizer_state import OptimizerState
from fedmtl_server.aggregation.optimizers import make_optimizer
from fedmtl_server.aggregation.task_weighting import make_weighting
from fedmtl_server.aggregation.task_weighting.shares import Examples
from fedmtl_server.commits import Commits
from fedmtl_server.federation import Federation, RunSpec
from fedmtl_server.model import MTLServerModel
from fedmtl_server.monitoring.setup import Monitoring
from fedmtl_server.monitoring.trackers import trackers_for
from fedmtl_server.monitoring.tracking import TrackedRun, Tracking, round_point
from fedmtl_server.open_round import RunParts
from fedmtl_server.recovery import recovered_updates
from fedmtl_server.rounds.cohorts import CohortRule
from fedmtl_server.rounds.engine import AsyncRule, RoundRules
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rounds.stopping import EarlyStopping
from fedmtl_server.rounds.task_selection import TaskSelection, make_selection
from fedmtl_server.sharing.layer_moves import Mover
from fedmtl_server.sharing.policies import SharingPolicy, make_policy
from fedmtl_server.storage.checkpoint_folder import CheckpointLayouts
from fedmtl_server.storage.folders import held_run, unfinished_run
from fedmtl_server.storage.resume import LeftOff
from fedmtl_server.storage.store import RunStore, without_secrets
from fedmtl_server.transfer.buffers import BufferPool
from fedmtl_server.transfer.staging import MIN_UPDATES_IN_MEMORY, StagingArea


@dataclass(frozen=True)
class OpenedRun:
    """A run that is ready to be held."""

    store: RunStore
    federation: Federation
    tracking: Tracking


class Assembly:
    """The parts of one server. What a configuration names is made at once, and what takes files or time on demand.

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

    def __init__(self, config: Config, run_dir: Path | None, model: MTLServerModel | None, *, finished: bool):
        require_safe(config)
        if not config.tasks:
            raise ConfigError("tasks: name at least one task, such as `tasks: {sst2: {}}`")
        if not config.tasks.keys() - config.auxiliary_tasks():
            raise ConfigError(f"tasks: {', '.join(config.tasks)}: at least one has to be another than auxiliary")
        self.config = config
        self._run_dir = run_dir
        self._may_be_over = finished
        self._trackers = trackers_for(config)
        self.monitoring = Monitoring.of(config)
        self.gate = Gate(config) if is_authenticating(config) else None
        self._held_id = _held_run_id(run_dir, config) if run_dir else None
        self.run_id = self._held_id or uuid.uuid4().hex
        optimizer = make_optimizer(config.server_optimizer)  # before anything that takes long
        policy = make_policy(config.sharing.adaptive)
        self._weighting = make_weighting(config.aggregation)
        self._selection = make_selection(config.rounds.task_selection)
        if policy and not self._weighting:  # it looks at every task's mean
            self._weighting = Examples(config.aggregation)
        if model is None:
            get_logger().info("model.loading", source=config.model.server_model)
            model = MTLServerModel.from_config(config, weights=self._held_id is None)
        self.model = model
        layouts = model.layouts_for(None)
        self._optimizer = OptimizerState(optimizer, layouts) if optimizer else None
        self._mover = self._make_mover(policy) if policy else None
        self._controls = _controls(model) if config.training.control_variates else None

    def open(self) -> OpenedRun:
        """Begin the run, or resume it. Reads and writes files.

        Raises:
            StoreError: the run's folder can't be made, read or locked.
        """
        config, model = self.config, self.model
        if self._held_id is None or self._run_dir is None:
            if self._run_dir is None:
                self._warn_of_unfinished()
            store = RunStore.create(config, self.run_id, model.components, model.summary(), self._run_dir)
            return self._opened(store)
        store = RunStore.resume(config, self.run_id, self._run_dir, finished=self._may_be_over)
        left_off = self._restored(store)
        opened = self._opened(store)
        opened.federation.resume(left_off, recovered_updates(store, left_off, model, config))
        return opened

    def _restored(self, store: RunStore) -> LeftOff:
        """Where the run stands, with its model and what has moved in it installed."""
        left_off = store.left_off(self._checkpoint_layouts)
        if self._mover and left_off.reports:
            self._mover.take_up(left_off.reports[-1].sharing, left_off.reports[-1].sharing_state)
        table = self._mover.table if self._mover else self.model.sharing
        self.model.rearrange(table, left_off.components)
        if self._optimizer:
            self._optimizer.begin(self.model.layouts_for(None))
        return left_off

    def _make_mover(self, policy: SharingPolicy) -> Mover:
        section = self.config.sharing
        layers = movable_parts(section.rules(), section.adaptive.layers)
        return Mover(policy, self.model, layers, section.adaptive.max_parameters)

    def _checkpoint_layouts(self, report: RoundReport | None) -> CheckpointLayouts:
        """The layouts of the checkpoint of the round that a report is of; None for round 0."""
        if report is not None and report.sharing:  # layers have moved
            table = self.model.table_of({part: blocks_of(blocks) for part, blocks in report.sharing.items()})
            layouts = self.model.layouts_of(table)
            return CheckpointLayouts(layouts, self._optimizer.layouts_of(layouts) if self._optimizer else [])
        remembering = [one for one in (self._optimizer, self._controls) if one]
        return CheckpointLayouts(
            [component.layout for component in self.model.components.values()],
            [layout for one in remembering for layout in one.layouts],
        )

    def _warn_of_unfinished(self) -> None:
        """Say it if the run that begins could have been an earlier one's going on."""
        earlier = unfinished_run(self.config)
        if earlier is not None:
            get_logger().warning(
                "run.begins_anew",
                unfinished=str(earlier),
                reason="a run of the same configuration is there, and isn't over",
                take_it_up_with=f"fedmtl-server --resume {earlier}",
            )

    def _opened(self, store: RunStore) -> OpenedRun:
        config, model = self.config, self.model
        run = TrackedRun.of(self.run_id, store.run_dir, without_secrets(config))
        tracking = Tracking(self._trackers, run, lambda: [round_point(one) for one in store.reports()])
        aggregator = MTLAggregator(
            _norms(config),
            self._weighting,
            config.training.seed,
            _auxiliary(config),
            config.aggregation.normalization,
            config.robustness.max_client_share,
        )
        staging = self._make_staging(store)
        commits = Commits(
            model, aggregator, store, staging, optimizer=self._optimizer, controls=self._controls, mover=self._mover
        )
        spec = RunSpec(
            run_id=self.run_id,
            specs=config.task_specs(),
            rules=_rules(config, self._selection),
            plans={task: replace(config.plan(task), local=model.sharing.local_for(task)) for task in config.tasks},
            early_stopping=_early_stopping(config),
            topk_density=config.wire.topk_density,
            report_interval_s=config.rounds.report_interval_s,
        )
        listeners = [tracking, *self.monitoring.listeners]
        return OpenedRun(store, Federation(spec, RunParts(commits, aggregator, store, staging, listeners)), tracking)

    def _make_staging(self, store: RunStore) -> StagingArea:
        """Room for updates; the pool keeps what a round uses at its height: the model before, and each task's mean."""
        config, model = self.config, self.model
        budget = config.server.staging_memory_mb * 2**20
        largest = max(sum(layout.num_bytes for layout in model.layouts_for(task)) for task in model.tasks)
        whole = sum(component.layout.num_bytes for component in model.components.values())
        means = {scope: len(model.sharing.members(scope)) - 1 for scope in model.components} if self._weighting else {}
        others = sum(count * model.components[scope].layout.num_bytes for scope, count in means.items())
        growth = config.sharing.adaptive.max_parameters if self._mover else 1
        controls = sum(layout.num_bytes for layout in self._controls.layouts) if self._controls else 0
        pool = BufferPool(max(budget, MIN_UPDATES_IN_MEMORY * largest) + int(growth * (whole + others)) + controls)
        return StagingArea(budget, store.spool, pool, durable=config.store.durability != "memory")


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


def _rules(config: Config, selection: TaskSelection) -> RoundRules:
    rounds, tasks = config.rounds, config.tasks
    return RoundRules(
        num_rounds=config.training.num_rounds,
        min_clients={name: task.min_clients for name, task in tasks.items()},
        expected=frozenset(client.client_id for client in config.clients if rounds.await_clients_s),
        await_clients_s=rounds.await_clients_s or 0.0,
        auxiliary=config.auxiliary_tasks(),
        deadline_s=rounds.deadline_s,
        task_deadline_s={name: task.deadline_s for name, task in tasks.items() if task.deadline_s is not None},
        quorum_timeout_s=rounds.quorum_timeout_s,
        rejoin_grace_s=rounds.rejoin_grace_s,
        transfer_timeout_s=rounds.transfer_timeout_s,
        on_missing_quorum=rounds.on_missing_quorum,
        max_extensions=rounds.max_extensions,
        cohort=CohortRule(
            rounds.cohort, rounds.cohort_fraction, rounds.cohort_size, rounds.cohort_extra, config.training.seed
        ),
        asynchronous=(
            AsyncRule(rounds.buffer_size, rounds.max_staleness, rounds.staleness_exponent)
            if rounds.mode == "async"
            else None
        ),
        selection=selection,
        seed=config.training.seed,
        max_examples=config.max_examples(),
    )


def _norms(config: Config) -> NormRule:
    section = config.robustness.norms
    return NormRule(section.action, section.bound, section.median_factor, section.window, section.model_factor)


def _controls(model: MTLServerModel) -> ControlVariates:
    members = {scope: model.sharing.members(scope) for scope in model.components}
    return ControlVariates(model.layouts_for(None), members)


def _auxiliary(config: Config) -> dict[str, Auxiliary]:
    sections = {name: task.auxiliary for name, task in config.tasks.items()}
    return {name: Auxiliary(one.weight, one.decay) for name, one in sections.items() if one is not None}


def _early_stopping(config: Config) -> EarlyStopping | None:
    return None if config.early_stopping.patience is None else EarlyStopping(config.early_stopping)
