"""The results of a run: each task's main metric by round, the first, the last and the best; and their plot."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedmtl_core.json_types import JsonObject
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_server.rounds.metric_reports import MetricReport
from fedmtl_server.rounds.report import RoundReport, TaskReport
from fedmtl_server.rounds.task_selection import TaskLoss


@dataclass(frozen=True)
class TaskResult:
    """One task's main metric by round. Round 0 is the model before the first round."""

    metric: str
    by_round: Mapping[int, float]
    """The value of the metric; a model for which it is undefined is only in `measured`."""
    auxiliary: bool = False
    measured: Mapping[int, MetricReport] = field(default_factory=dict)
    """For every model that clients have measured, the clients and examples that the metric was computed over."""

    @property
    def first(self) -> float | None:
        return self.by_round.get(0)

    @property
    def last_round(self) -> int | None:
        """The newest model that clients have measured."""
        return max([*self.by_round, *self.measured], default=None)

    @property
    def last(self) -> float | None:
        """The value for the newest measured model; None if it is undefined there."""
        return None if self.last_round is None else self.by_round.get(self.last_round)

    @property
    def best_round(self) -> int | None:
        numbers = {round_: value for round_, value in self.by_round.items() if math.isfinite(value)}
        return max(numbers, key=lambda round_: numbers[round_], default=None)  # NaN is never the best

    @classmethod
    def from_dict(cls, values: JsonObject) -> TaskResult:
        """Return the result that `to_dict` was made of."""
        by_round = {int(round_): value for round_, value in values["by_round"].items()}
        measured = {int(round_): MetricReport(**one) for round_, one in values.get("measured", {}).items()}
        return cls(values["metric"], by_round, values["auxiliary"], measured)

    def to_dict(self) -> dict[str, object]:
        best = self.best_round
        return asdict(self) | {
            "first": self.first,
            "last": self.last,
            "last_round": self.last_round,
            "best": None if best is None else self.by_round[best],
            "best_round": best,
        }


class Measurements:
    """Each task's metrics by round, collected from the rounds' reports.

    Args:
        specs: the tasks.
        auxiliary: the names of the auxiliary tasks.
    """

    def __init__(self, specs: Iterable[TaskSpec], auxiliary: Collection[str] = ()):
        self._auxiliary = auxiliary
        self._metric_of = {spec.name: spec.main_metric for spec in specs}
        self.by_round: dict[str, dict[int, float]] = {task: {} for task in self._metric_of}
        """By task, the value of its main metric by the round of the model measured, where it has one."""
        self.measured: dict[str, dict[int, MetricReport]] = {task: {} for task in self._metric_of}
        """By task, what its main metric was computed over, by the round of the model measured."""
        self.last: dict[str, Mapping[str, float]] = {}
        """By task, all metrics of the newest model measured."""
        self.losses: dict[str, TaskLoss] = {}
        """By task, the loss of the first model measured and of the newest."""

    def add(self, report: RoundReport) -> None:
        """Add the metrics that a round's clients reported.

        Clients evaluate the model they receive, which is the one that the round before committed. If an evaluation
        round then changed it, the changed model has the metrics of each task's chosen variant.
        """
        for task in (task for task in report.tasks if task.task in self._metric_of and _is_measured(task)):
            self._add(task.task, report.round - 1, task.received_metrics, task.received_reports)
            if report.makes_final_model:
                chosen = task.chosen
                metrics = chosen.metrics if chosen else task.received_metrics
                reports = chosen.metric_reports if chosen else task.received_reports
                self._add(task.task, report.round, metrics, reports)

    def _add(self, task: str, round_: int, metrics: Mapping[str, float], reports: Mapping[str, MetricReport]) -> None:
        """Add the metrics of the model that a round made."""
        self.last[task] = metrics
        if (loss := metrics.get("loss")) is not None:
            before = self.losses.get(task)
            self.losses[task] = TaskLoss(before.first if before else loss, loss)
        metric = self._metric_of[task]
        if metric in metrics:
            self.by_round[task][round_] = metrics[metric]
        if metric in reports:
            self.measured[task][round_] = reports[metric]

    def results(self) -> dict[str, TaskResult]:
        """Return every task's main metric by round."""
        return {
            task: TaskResult(metric, dict(self.by_round[task]), task in self._auxiliary, dict(self.measured[task]))
            for task, metric in self._metric_of.items()
        }

    def that_may_stop(self) -> dict[str, dict[int, float]]:
        """Return `by_round` without auxiliary tasks, for early stopping."""
        return {task: measured for task, measured in self.by_round.items() if task not in self._auxiliary}

    def best_rounds(self) -> set[int]:
        """Return the rounds with the best model of some task."""
        return {result.best_round for result in self.results().values() if result.best_round is not None}


def _is_measured(task: TaskReport) -> bool:
    """Return whether clients evaluated the model that the round began with."""
    return bool(task.received_metrics or task.received_reports)


def plot(results: Mapping[str, TaskResult], path: Path) -> None:
    """Plot every task's metric by round into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for task, result in results.items():
        rounds = sorted(result.by_round)
        label = f"{task} ({result.metric}{', auxiliary' if result.auxiliary else ''})"
        style = "--" if result.auxiliary else "-"
        axes.plot(rounds, [result.by_round[r] for r in rounds], style, marker="o", label=label)
    axes.set(xlabel="round (0: before the first)", ylabel="metric of the task's model")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
