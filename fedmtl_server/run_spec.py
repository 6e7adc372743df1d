"""The specification of a run, and the objects that carry it out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
    """The specification of a run."""

    run_id: str
    """The permanent id of the run."""
    specs: Sequence[TaskSpec]
    """The run's tasks."""
    rules: RoundRules
    """The conditions for opening and closing rounds."""
    plan: Callable[[str, int], TrainingPlan]
    """Returns the training plan that the clients of a task get in a round."""
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    """The conditions for ending training before the last round."""
    may_stop_after: int = 0
    """The first round whose model counts for `early_stopping`: the round of the last planned change of the sharing."""
    topk_density: float = DEFAULT_DENSITY
    """The share of a component's elements in a `topk` slice."""
    report_interval_s: float = 10.0
    """The interval between log lines with the missing clients or updates, in seconds."""


@dataclass(frozen=True)
class RunParts:
    """The objects that carry out a run."""

    commits: Commits
    """The run's model, and the pipeline that computes the next one."""
    store: RunStore
    """The storage for commits."""
    staging: StagingArea
    """The storage for updates until they are averaged."""
    listeners: Sequence[Listener] = ()
    """The objects notified of updates and rounds."""
    clock: Callable[[], float] = time.monotonic
    """A monotonic clock in seconds."""
