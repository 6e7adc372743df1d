"""Builds the parts of a server from its configuration. This is the only module that knows all parts."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from fedmtl_core.config import Config, contradictions, sharing_in_words
from fedmtl_core.errors import ConfigError
from fedmtl_core.logs import get_logger
from fedmtl_core.model.scopes import FROZEN
from fedmtl_core.model.sharing import blocks_of
from fedmtl_server.access.gate import Gate
from fedmtl_server.access.tls import is_authenticating, require_safe
from fedmtl_server.aggregation.ranks import Ranks
from fedmtl_server.aggregation_rules import AggregationRules
from fedmtl_server.aggregation_setup import make_pipeline
from fedmtl_server.commits import Commits
from fedmtl_server.federation import Federation
from fedmtl_server.initial_model import Start, start_from
from fedmtl_server.model import MTLServerModel, changing, check_model_adapters
from fedmtl_server.monitoring.setup import Monitoring
from fedmtl_server.monitoring.trackers import trackers_for
from fedmtl_server.monitoring.tracking import TrackedRun, Tracking, round_point
from fedmtl_server.recovery import recovered_updates, restore
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.rounds.task_selection import make_selection
from fedmtl_server.run_spec import RunParts, RunSpec
from fedmtl_server.starting_run import find_source
from fedmtl_server.storage.checkpoint_folder import CheckpointLayouts
from fedmtl_server.storage.folders import held_run, unfinished_run
from fedmtl_server.storage.store import RunStore, without_secrets
from fedmtl_server.transfer.buffers import BufferPool
from fedmtl_server.transfer.staging import MIN_UPDATES_IN_MEMORY, StagingArea
from fedmtl_server.transfer.update_layouts import UpdateLayouts


@dataclass(frozen=True)
class OpenedRun:
    """An opened run, ready to start its rounds."""

    store: RunStore
    federation: Federation
    tracking: Tracking


class Assembly:
    """The parts of one server. The constructor builds the model and plug-ins; `open` opens the run folder.

    Args:
        config: the configuration of the run.
        run_dir: the run folder; a new one in `server.runs_dir` if None.
        model: the model to train; if None, the model that the configuration names.
        finished: whether the run may be over already; the server then serves its final model.

    Raises:
        ConfigError: the configuration names no task, contradicts the run in the folder, would admit any client by
            accident, or names a class that can't be loaded.
        ModelUnavailableError: the encoder can't be loaded.
        StoreError: the folder, or the run that `model.from_run` names, can't be read.
    """

    def __init__(self, config: Config, run_dir: Path | None, model: MTLServerModel | None, *, finished: bool):
        require_safe(config)
        if not config.tasks:
            raise ConfigError("tasks: expected at least one task, got none; for example `tasks: {sst2: {}}`")
        if not config.tasks.keys() - config.auxiliary_tasks():
            raise ConfigError(
                f"tasks: expected at least one task that isn't auxiliary, got only auxiliary ones: "
                f"{', '.join(config.tasks)}"
            )
        self.config = config
        self._run_dir = run_dir
        self._may_be_over = finished
        self._trackers = trackers_for(config)
        self.monitoring = Monitoring.of(config)
        self.gate = Gate(config) if is_authenticating(config) else None
        self._held_id = _held_run_id(run_dir, config) if run_dir else None
        self.run_id = self._held_id or uuid.uuid4().hex
        get_logger().info("sharing.chosen", **sharing_in_words(config))
        rules = AggregationRules.of(config)  # errors in the configuration come before the slow steps
        if rules.rule is not None:
            get_logger().info("rule.loaded", rule=config.aggregation.rule, options=config.aggregation.rule_options)
        if rules.policy is not None:
            adaptive = config.sharing.adaptive
            get_logger().info("policy.loaded", policy=adaptive.policy, options=adaptive.options)
        for entry in config.sharing.schedule:
            get_logger().info("sharing.scheduled", **entry.model_dump(exclude_none=True))
        self._selection = make_selection(config.rounds.task_selection)
        source = find_source(config) if self._held_id is None else None
        if model is None:
            get_logger().info("model.loading", source=config.model.server_model)
            model = MTLServerModel.from_config(config, weights=self._held_id is None)
        elif self._held_id is None:
            check_model_adapters(model)
        self.model = model
        self._start: Start | None = None
        if source is not None:
            self._start = start_from(source, model)
            self._start.tell(get_logger())
        self._pipeline = make_pipeline(config, model, rules)

    def open(self) -> OpenedRun:
        """Start or resume the run. Reads and writes files.

        Raises:
            StoreError: the run folder can't be made, read or locked.
        """
        config, model = self.config, self.model
        if self._held_id is None or self._run_dir is None:
            if self._run_dir is None:
                self._warn_of_unfinished()
            started_from = self._start.facts() if self._start else None
            store = RunStore.create(
                config,
                self.run_id,
                changing(model.components, model.base),
                model.summary(),
                self._run_dir,
                started_from=started_from,
                base=model.base.get(FROZEN),
            )
            self._pipeline.restore({}, {}, model.layouts_for(None))
            return self._opened(store)
        store = RunStore.resume(config, self.run_id, self._run_dir, finished=self._may_be_over)
        left_off = store.left_off(self._checkpoint_layouts)
        restore(left_off, model, self._pipeline)
        if FROZEN in model.base:
            store.read_base(model.base[FROZEN])
        opened = self._opened(store)
        layouts = UpdateLayouts(model, Ranks.of_config(config))
        opened.federation.resume(left_off, recovered_updates(store, left_off, layouts, config))
        return opened

    def _checkpoint_layouts(self, report: RoundReport | None) -> CheckpointLayouts:
        """Return the checkpoint layouts of the round that a report describes; None stands for round 0."""
        parts = self.model.parts
        if report is not None and report.sharing:  # layers were regrouped
            parts = parts.moved({part: blocks_of(blocks) for part, blocks in report.sharing.items()})
        metadata = report.stages if report is not None else {}
        state = self._pipeline.state_layouts(parts.layouts(), metadata)
        return CheckpointLayouts(parts.checkpoint_layouts(), state)

    def _warn_of_unfinished(self) -> None:
        """Log a warning if an earlier, unfinished run of the same configuration could be resumed instead."""
        earlier = unfinished_run(self.config)
        if earlier is not None:
            get_logger().warning(
                "run.not_resumed",
                unfinished=str(earlier),
                reason="starting a new run, although an earlier run of the same configuration isn't over",
                resume_with=f"fedmtl-server --resume {earlier}",
            )

    def _opened(self, store: RunStore) -> OpenedRun:
        config, model = self.config, self.model
        run = TrackedRun.of(self.run_id, store.run_dir, without_secrets(config))
        tracking = Tracking(self._trackers, run, lambda: [round_point(one) for one in store.reports()])
        staging = self._make_staging(store)
        commits = Commits(model, self._pipeline, store, staging, Ranks.of_config(config))
        spec = RunSpec(
            run_id=self.run_id,
            specs=config.task_specs(),
            rules=RoundRules.from_config(config, self._selection),
            plan=cache(lambda task, round_: replace(config.plan(task, round_), local=model.sharing.local_for(task))),
            early_stopping=config.early_stopping,
            may_stop_after=max((entry.after_round for entry in config.sharing.schedule), default=0),
            topk_density=config.wire.topk_density,
            report_interval_s=config.rounds.report_interval_s,
        )
        listeners = [tracking, *self.monitoring.listeners]
        return OpenedRun(store, Federation(spec, RunParts(commits, store, staging, listeners)), tracking)

    def _make_staging(self, store: RunStore) -> StagingArea:
        """Create the staging area; its buffer pool is as large as the peak use of a round."""
        config, model = self.config, self.model
        budget = config.server.staging_memory_mb * 2**20
        largest = max(sum(layout.num_bytes for layout in model.layouts_for(task)) for task in model.tasks)
        kept = self._pipeline.kept_bytes(model.layouts_for(None), model.sharing.members)
        pool = BufferPool(max(budget, MIN_UPDATES_IN_MEMORY * largest) + kept)
        return StagingArea(budget, store.spool, pool, durable=config.store.durability != "memory")


def _held_run_id(run_dir: Path, config: Config) -> str | None:
    """Return the id of the run in a folder; None if the folder has no run.

    Raises:
        ConfigError: the configuration contradicts the configuration of the stored run.
    """
    held = held_run(run_dir)
    if held is None:
        return None
    run_id, stored = held
    if problems := contradictions(stored, config):
        raise ConfigError(
            f"{run_dir} has a run with a different configuration: {'; '.join(problems)}. Resume that run with its own "
            f"configuration (`fedmtl-server --resume {run_dir}`), or start a new run with another --run-dir"
        )
    return run_id
