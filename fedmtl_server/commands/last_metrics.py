"""The tasks' metrics of the newest model of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmtl_server.commands.run_facts import main_metrics

if TYPE_CHECKING:
    from fedmtl_server.storage.records import MetricRecord, RunRecord


@dataclass(frozen=True)
class LastMetric:
    """A task's main metric of the newest model that the task's clients evaluated."""

    metric: str
    value: float | None
    """None if the metric is undefined for that model."""
    round: int
    """The round of the evaluated model."""


def last_metrics(run: RunRecord, metrics: Sequence[MetricRecord]) -> dict[str, LastMetric]:
    """Return the latest main metric of each evaluated task; its first metric if the main one is unknown."""
    main = main_metrics(run)
    last: dict[str, LastMetric] = {}
    for task in run.tasks:
        mine = [one for one in metrics if one.task == task]
        round_ = max((one.round for one in mine), default=0)
        values = {one.name: one.value for one in mine if one.round == round_}
        if values:
            name = main.get(task, next(iter(values)))
            last[task] = LastMetric(name, values.get(name), round_)
    return last


def last_metrics_text(last: Mapping[str, LastMetric]) -> str:
    """Return the result of `last_metrics` on one line."""
    values = {task: "undefined" if one.value is None else f"{one.value:.3f}" for task, one in last.items()}
    return ", ".join(f"{task} {last[task].metric} {value}" for task, value in values.items())
