"""Reporting a run to experiment trackers such as TensorBoard and MLflow.

Each tracker has its own thread, which writes the rounds that the history has and the tracker lacks. It does so when the
run begins or is resumed, after every round, and when the tracker works again after a failure. A tracker that fails or
hangs therefore doesn't delay a round, and gets the missing rounds later.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

from fedmtl_core.config import Config, flattened
from fedmtl_core.logs import get_logger
from fedmtl_core.model.scopes import group_of, task_of
from fedmtl_server.events import Listener
from fedmtl_server.rounds.report import ComponentReport, RoundReport

MARKS = ("round/seconds", "evaluation/seconds")
"""Every round has one of these metrics: a round of training the first, the final evaluation the second. It is written
last, so a tracker that has it for a round has the whole round."""

MAX_WAITING = 64
"""The largest number of rounds that wait for a tracker's thread. Older ones are read from the history."""

RETRY_S = 30.0
"""Seconds after a failure until a tracker is tried again."""

FLUSH_S = 10.0
"""Seconds that a stopping server waits for its trackers."""

Outcome = Literal["finished", "stopped", "failed"]
"""How a server ended a run: `finished`, or resumable after a signal (`stopped`) or an error (`failed`)."""


@dataclass(frozen=True)
class TrackedRun:
    """A run's identity and settings, for trackers."""

    run_id: str
    run_dir: Path
    settings: Mapping[str, object]
    """Every setting by its dotted key; the values are lists, texts, numbers, booleans or None. No secrets."""

    @classmethod
    def of(cls, run_id: str, run_dir: Path, config: Config) -> TrackedRun:
        """Return a run and its configuration, which must be without secrets."""
        return cls(run_id, run_dir, dict(flattened(config.model_dump(mode="json"))))


@dataclass(frozen=True)
class RoundPoint:
    """The numbers of one round."""

    round: int
    ended_at_unix_ms: int
    metrics: Mapping[str, float]
    """By name, one of `MARKS` last."""

    @property
    def mark(self) -> tuple[int, int]:
        """Identifies the round, and distinguishes it from the same round before a rollback."""
        return self.round, self.ended_at_unix_ms


class Tracker(ABC):
    """One tracker. Its methods are called from one thread. After any exception, `begin` is called again."""

    name: str

    @abstractmethod
    def begin(self, run: TrackedRun) -> None:
        """Open a run, or continue it if the tracker already has it."""

    @abstractmethod
    def lacks(self, points: Sequence[RoundPoint]) -> Sequence[RoundPoint]:
        """Return the rounds of a run that the tracker lacks, in order."""

    @abstractmethod
    def round(self, point: RoundPoint) -> None:
        """Write one round."""

    @abstractmethod
    def end(self, outcome: Outcome) -> None:
        """Record the outcome of the run, after everything is written."""


def round_point(report: RoundReport) -> RoundPoint:
    """Return the numbers of a round's report; for the final evaluation only the metrics of the model."""
    metrics = {
        f"received/{task.task}/{name}": value for task in report.tasks for name, value in task.received_metrics.items()
    }
    if report.purpose == "evaluate":
        metrics[MARKS[1]] = report.duration_s
    else:
        metrics |= _of_training(report)
    ended_at = report.opened_at_unix_ms + round(report.duration_s * 1000)
    return RoundPoint(report.round, ended_at, {name: float(value) for name, value in metrics.items()})


def _of_training(report: RoundReport) -> dict[str, float]:
    counted = 0 if report.failed else sum(task.num_updates for task in report.tasks)
    metrics: dict[str, float] = {}
    for task in report.tasks:
        metrics |= {f"trained/{task.task}/{name}": value for name, value in task.trained_metrics.items()}
        metrics[f"updates/{task.task}"] = task.num_updates
        metrics[f"examples/{task.task}"] = task.num_examples
        metrics[f"encoder_share/{task.task}"] = task.encoder_share
        if task.auxiliary_weight is not None:
            metrics[f"auxiliary_weight/{task.task}"] = task.auxiliary_weight
    for component in report.components:
        metrics |= _norms(component)
    for scope, error in report.inexactness.items():
        metrics[f"adapters/{scope.replace(':', '/')}/inexactness"] = error
    metrics |= {f"blocks/{part}": len(blocks) for part, blocks in report.sharing.items()}
    return metrics | {
        "round/failed": int(report.failed),
        "round/cohort_size": sum(task.num_updates for task in report.tasks) + len(report.missing_clients),
        "round/updates_counted": counted,
        "round/updates_refused": report.num_refused,
        "round/updates_missing": len(report.missing_clients),
        "round/components_discarded": len(report.discarded),
        "round/warnings": len(report.warnings),
        "round/bytes_in": report.bytes_received,
        "round/bytes_out": report.bytes_sent,
        "round/aggregation_seconds": report.aggregation_s,
        MARKS[0]: report.duration_s,
    }


def _norms(component: ComponentReport) -> dict[str, float]:
    """Return the median and the largest norm of a component's updates, if norms were measured."""
    norms = [part.norm for part in component.contributions if part.norm is not None]
    task, group = task_of(component.scope), group_of(component.scope)
    name = f"norm/head/{task}" if task else f"norm/group/{group}" if group else "norm/encoder"
    return {f"{name}/median": median(norms), f"{name}/max": max(norms)} if norms else {}


class Tracking(Listener):
    """Reports a run to trackers.

    Args:
        trackers: the trackers.
        run: the run.
        history: returns the run's rounds so far, in order; called from the trackers' threads.
        retry_s: seconds after a failure until a tracker is tried again; `RETRY_S` if None.
    """

    def __init__(
        self,
        trackers: Iterable[Tracker],
        run: TrackedRun,
        history: Callable[[], Sequence[RoundPoint]],
        retry_s: float | None = None,
    ):
        retry_s = RETRY_S if retry_s is None else retry_s
        self._workers = [_Worker(tracker, run, history, retry_s) for tracker in trackers]

    def start(self) -> None:
        """Start to report, first the rounds that are already in the history."""
        for worker in self._workers:
            worker.start()

    def round_ended(self, report: RoundReport) -> None:
        """Queue a round for all trackers."""
        if self._workers:
            point = round_point(report)
            for worker in self._workers:
                worker.tell(point)

    async def close(self, outcome: Outcome, timeout_s: float = FLUSH_S) -> None:
        """Wait until everything is written, and end. A tracker that takes longer is abandoned."""
        for worker in self._workers:
            worker.end(outcome)
        until = time.monotonic() + timeout_s
        await asyncio.gather(*(asyncio.to_thread(worker.join, until) for worker in self._workers))


class _Worker:
    """One tracker's thread, and the rounds that wait for it."""

    def __init__(self, tracker: Tracker, run: TrackedRun, history: Callable[[], Sequence[RoundPoint]], retry_s: float):
        self._tracker = tracker
        self._run = run
        self._history = history
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._waiting: deque[RoundPoint] = deque()
        self._outcome: Outcome | None = None
        self._is_current = False
        """Whether the tracker is open and has all of the history, except the waiting rounds."""
        self._has_failed = False
        self._is_left = False
        # A daemon, so that a hanging tracker doesn't keep the process alive.
        self._thread = threading.Thread(target=self._work, name=f"tracker-{tracker.name}", daemon=True)
        self._log = get_logger(tracker=tracker.name)

    def start(self) -> None:
        self._thread.start()

    def tell(self, point: RoundPoint) -> None:
        """Queue a round for the thread."""
        with self._changed:
            self._waiting.append(point)
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._is_current = False  # the history has it
            self._changed.notify()

    def end(self, outcome: Outcome) -> None:
        """Let the thread end when the waiting rounds are written, or can't be."""
        with self._changed:
            self._outcome = outcome
            self._changed.notify()

    def join(self, until: float) -> None:
        """Wait for the thread to end, until a time of the monotonic clock."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._is_left = True
            self._log.warning("tracker.left_behind", reason="it takes too long", **self._hint())

    def _work(self) -> None:
        patience_s: float | None = 0.0  # the history's rounds are written at once
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._outcome, patience_s)
                outcome = self._outcome
            is_well = self._attempt(self._write)
            if outcome is not None:
                is_well = is_well and self._attempt(partial(self._tracker.end, outcome))
                if not is_well and not self._is_left:
                    self._log.warning("tracker.left_behind", reason="it doesn't work", **self._hint())
                return
            patience_s = None if is_well else 0.0
            if not is_well:
                self._pause()

    def _pause(self) -> None:
        """After a failure, wait for the time to try again, or for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._outcome is not None, self._retry_s)

    def _write(self) -> None:
        if not self._is_current:
            self._catch_up()
        while (point := self._next()) is not None:
            try:
                self._tracker.round(point)
            except BaseException:
                with self._changed:
                    self._waiting.appendleft(point)
                raise

    def _catch_up(self) -> None:
        """Open the tracker, and write the rounds that it lacks."""
        with self._changed:
            self._is_current = True  # `tell` resets it if too many rounds arrive meanwhile
        self._tracker.begin(self._run)
        known = {point.mark: point for point in self._history()}
        with self._changed:
            known |= {point.mark: point for point in self._waiting}
            self._waiting.clear()
        for point in self._tracker.lacks(sorted(known.values(), key=lambda one: one.mark)):
            self._tracker.round(point)

    def _next(self) -> RoundPoint | None:
        with self._changed:
            return self._waiting.popleft() if self._waiting and self._is_current else None

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Run a step of the tracker; log the first failure, and when the tracker works again."""
        try:
            step()
        except Exception as error:  # whatever a tracker's package raises, the run continues
            self._is_current = False
            if not self._has_failed and not self._is_left:
                self._has_failed = True
                reason = " ".join(str(error).split())[:500] or type(error).__name__
                self._log.warning("tracker.failed", reason=reason, retry_s=self._retry_s)
            return False
        if self._has_failed:
            self._has_failed = False
            self._log.info("tracker.works_again")
        return True

    def _hint(self) -> dict[str, str]:
        return {"hint": "the missing rounds are in the run's history; a server that resumes the run writes them"}
