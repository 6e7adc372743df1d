"""Builds the parts of a server from its configuration. Nothing else knows all of them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedmtl_core.config import Config, contradictions
from fedmtl_core.errors import ConfigError
from fedmtl_core.logs import get_logger
from fedmtl_core.model.sharing import blocks_of
from fedmtl_core.wire.layout import Layout
from fedmtl_server.access.gate import Gate
from fedmtl_server.access.tls import is_authenticating, require_safe
from fedmtl_server.aggregation_setup import AggregationRules, make_pipeline
from fedmtl_server.commits import Commits
from fedmtl_server.federation import Federation
from fedmtl_server.model import MTLServerModel
from fedmtl_server.monitoring.setup import Monitoring
from fedmtl_server.monitoring.trackers import trackers_for
from fedmtl_server.monitoring.tracking import TrackedRun, Tracking, round_point
from fedmtl_server.recovery import recovered_updates, restore
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.rounds.task_selection import make_selection
from fedmtl_server.run_spec import RunParts, RunSpec
from fedmtl_server.storage.checkpoint_folder import CheckpointLayouts
from fedmtl_server.storage.folders import held_run, unfinished_run
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
        rules = AggregationRules.of(config)  # before anything that takes long
        self._selection = make_selection(config.rounds.task_selection)
        if model is None:
            get_logger().info("model.loading", source=config.model.server_model)
            model = MTLServerModel.from_config(config, weights=self._held_id is None)
        self.model = model
        self._pipeline = make_pipeline(config, model, rules)

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
            self._pipeline.restore({}, {}, model.layouts_for(None))
            return self._opened(store)
        store = RunStore.resume(config, self.run_id, self._run_dir, finished=self._may_be_over)
        left_off = store.left_off(self._checkpoint_layouts)
        restore(left_off, model, self._pipeline)
        opened = self._opened(store)
        opened.federation.resume(left_off, recovered_updates(store, left_off, model, config))
        return opened

    def _checkpoint_layouts(self, report: RoundReport | None) -> CheckpointLayouts:
        """The layouts of the checkpoint of the round that a report is of; None for round 0."""
        layouts: Sequence[Layout] = self.model.layouts_for(None)
        if report is not None and report.sharing:  # layers have moved
            moved = {part: blocks_of(blocks) for part, blocks in report.sharing.items()}
            layouts = self.model.parts.moved(moved).layouts()
        return CheckpointLayouts(layouts, self._pipeline.state_layouts(layouts))

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
        staging = self._make_staging(store)
        commits = Commits(model, self._pipeline, store, staging)
        spec = RunSpec(
            run_id=self.run_id,
            specs=config.task_specs(),
            rules=RoundRules.from_config(config, self._selection),
            plans={task: replace(config.plan(task), local=model.sharing.local_for(task)) for task in config.tasks},
            early_stopping=config.early_stopping,
            topk_density=config.wire.topk_density,
            report_interval_s=config.rounds.report_interval_s,
        )
        listeners = [tracking, *self.monitoring.listeners]
        return OpenedRun(store, Federation(spec, RunParts(commits, store, staging, listeners)), tracking)

    def _make_staging(self, store: RunStore) -> StagingArea:
        """Room for updates; the pool keeps what a round uses at its height."""
        config, model = self.config, self.model
        budget = config.server.staging_memory_mb * 2**20
        largest = max(sum(layout.num_bytes for layout in model.layouts_for(task)) for task in model.tasks)
        kept = self._pipeline.kept_bytes(model.layouts_for(None), model.sharing.members)
        pool = BufferPool(max(budget, MIN_UPDATES_IN_MEMORY * largest) + kept)
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
