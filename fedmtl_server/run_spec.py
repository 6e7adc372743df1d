"""One run, before it is held: what it is to do, and what it is driven with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedmtl_core.config import EarlyStoppingConfig
from fedmtl_core.tasks.plan import TrainingPlan
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.formats import DEFAULT_DENSITY
from fedmtl_server.commits import Commits
from fedmtl_server.events import Listener
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.storage.store import RunStore
from fedmtl_server.transfer.staging import StagingArea


@dataclass(frozen=True)
class RunSpec:
    """What a run is to do."""

    run_id: str
    """Names it for good."""
    specs: Sequence[TaskSpec]
    """Its tasks."""
    rules: RoundRules
    """When its rounds open and close."""
    plans: Mapping[str, TrainingPlan] = field(default_factory=dict)
    """What clients are asked to do, by task."""
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    """When training ends before its last round."""
    topk_density: float = DEFAULT_DENSITY
    """Share of a component's elements in a `topk` slice."""
    report_interval_s: float = 10.0
    """How often the log says what the run waits for."""


@dataclass(frozen=True)
class RunParts:
    """What a run is driven with."""

    commits: Commits
    """Its model, and the pipeline that makes the next one."""
    store: RunStore
    """Where commits go."""
    staging: StagingArea
    """Where updates lie until they are averaged."""
    listeners: Sequence[Listener] = ()
    """Told of what happens."""
    clock: Callable[[], float] = time.monotonic
    """Seconds, monotonic."""
