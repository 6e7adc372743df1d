"""Compare an experiment's cells: numbers, tables and JSON, computed from stored results alone."""

from __future__ import annotations

import statistics as stats
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fedmtl_experiment.config import Base
from fedmtl_experiment.results import CellResult
from fedmtl_experiment.statistics import Difference, Summary, paired_difference, ratio_of_means, summary
from fedmtl_experiment.timing import WallTime, mean_wall_time

DEFAULT_LABELS: Mapping[Base, str] = {
    "local": "each client alone",
    "standard": "single-task federations",
    "mtl": "whole encoder shared",
    "central": "centralized training",
}
"""Labels of the first method of each base, for experiments that give none."""


@dataclass(frozen=True)
class HeldBackRow:
    """One method on the held-back rows, with the final model: one task, or the mean of all tasks."""

    value: Summary
    """The main metric."""
    to_standard: Difference | None
    """The difference to single-task federations; None if there are none to compare with."""


@dataclass(frozen=True)
class TaskRow:
    """One method on one task."""

    value: Summary
    """The main metric of the final model on the reported rows."""
    value_at_best: Summary
    """The main metric on the reported rows, of the model of the round that was best on the validation rows."""
    to_standard: Difference | None
    """The difference to single-task federations; None if there are none to compare with."""
    to_central: float | None
    """The ratio to centralized training; None if there is none to compare with."""
    steps: int
    by_round: Mapping[int, float]
    """The main metric on the validation rows by round, as the mean over seeds."""
    held_back: HeldBackRow | None = None
    """None if the setting holds no rows back."""


@dataclass(frozen=True)
class MeanRow:
    """One method over all tasks: the unweighted mean of their main metrics, seed by seed."""

    value: Summary
    """The mean on the reported rows."""
    to_standard: Difference | None
    """The difference to single-task federations; None if there are none to compare with."""
    to_central: float | None
    """The ratio to centralized training; None if there is none to compare with."""
    for_choosing: float
    """The final model's mean over tasks and seeds, on the validation rows."""
    held_back: HeldBackRow | None = None
    """None if the setting holds no rows back."""


@dataclass(frozen=True)
class MethodRow:
    """One method in one setting with one encoder."""

    method: str
    """The method's key in the configuration."""
    label: str
    """The method's name in tables and plots."""
    base: Base
    seeds: Sequence[int]
    tasks: Mapping[str, TaskRow]
    mean: MeanRow
    encoder_parameters: int
    held_parameters: int
    bytes_moved: float | None
    """Encoded bytes in both directions, as the mean over seeds; None if no bytes are exchanged."""
    seconds: float
    """The duration as the mean over seeds."""
    wall: WallTime | None = None
    """The parts of the wall time as means over the seeds that have them; None if none has."""

    @property
    def title(self) -> str:
        """The label, with the method's key where the two differ."""
        return self.label if self.label == self.method else f"{self.label} (`{self.method}`)"


@dataclass(frozen=True)
class Comparison:
    """The methods in one setting with one encoder."""

    setting: str
    """The setting's key in the configuration."""
    setting_label: str
    """The setting's name in tables and plots."""
    encoder: str
    metrics: Mapping[str, str]
    """The main metric of each task."""
    report_rows: Mapping[str, int]
    trivial: Mapping[str, float | None]
    """The main metric of a trivial baseline for each task; None for metrics without one."""
    methods: Sequence[MethodRow]
    chosen: str | None
    """The key of the federation of all tasks that is best on the validation rows, among those with the most seeds.

    None if there is at most one federation of all tasks."""

    @property
    def title(self) -> str:
        """The setting's label, its key where the two differ, and the encoder."""
        key = "" if self.setting_label == self.setting else f" (`{self.setting}`)"
        return f"{self.setting_label}{key}, {self.encoder}"

    @property
    def best(self) -> MethodRow | None:
        """The chosen federation of all tasks, or the only one; None if there is none."""
        federated = [row for row in self.methods if row.base == "mtl"]
        return next((row for row in federated if self.chosen in (None, row.method)), None)

    @property
    def firsts(self) -> Mapping[Base, str]:
        """The key of the first method of each base."""
        return {row.base: row.method for row in reversed(self.methods)}

    @property
    def main(self) -> list[MethodRow]:
        """The first method of each base, and the chosen federation of all tasks."""
        return [row for row in self.methods if row.method in (self.firsts[row.base], self.chosen)]

    def figure_name(self, kind: str) -> str:
        """The file name of a figure of this comparison; `kind` is `curves` or `bars`."""
        return f"{self.setting}-{self.encoder}-{kind}.png"


def compare(
    results: Sequence[CellResult],
    bases: Mapping[str, Base],
    *,
    labels: Mapping[str, str] | None = None,
    setting_labels: Mapping[str, str] | None = None,
) -> list[Comparison]:
    """Compare the methods of each setting and encoder.

    Args:
        results: finished cells, in the order of the tables.
        bases: each method's base, in the order of the tables' rows.
        labels: names of methods in tables and plots. A method without one has its key; the first method of each base
            has the base's label.
        setting_labels: names of settings in tables and plots; the setting's key if it has none.
    """
    firsts = {base: method for method, base in reversed([*bases.items()])}
    named = {**{method: DEFAULT_LABELS[base] for base, method in firsts.items()}, **(labels or {})}
    grids = dict.fromkeys((one.cell.setting, one.cell.encoder) for one in results)
    return [
        _comparison(
            [one for one in results if (one.cell.setting, one.cell.encoder) == (setting, encoder)],
            bases,
            {method: named.get(method, method) for method in bases},
            (setting_labels or {}).get(setting, setting),
        )
        for setting, encoder in grids
    ]


def to_json(comparisons: Sequence[Comparison], *, finished: int, planned: int) -> dict[str, object]:
    """Return the comparisons as JSON values, with the numbers of finished and planned cells."""
    return {
        "cells_finished": finished,
        "cells_planned": planned,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }


def _comparison(
    results: Sequence[CellResult], bases: Mapping[str, Base], labels: Mapping[str, str], setting_label: str
) -> Comparison:
    of_method = {method: [one for one in results if one.cell.method == method] for method in bases}
    of_base = {base: of_method[method] for method, base in reversed([*bases.items()]) if of_method[method]}
    first = results[0]
    rows = [
        _method_row(
            (method, labels[method], base), of_method[method], of_base.get("standard", []), of_base.get("central", [])
        )
        for method, base in bases.items()
        if of_method[method]
    ]
    return Comparison(
        first.cell.setting,
        setting_label,
        first.cell.encoder,
        {task: outcome.metric for task, outcome in first.tasks.items()},
        {task: outcome.report_rows for task, outcome in first.tasks.items()},
        {task: outcome.trivial for task, outcome in first.tasks.items()},
        rows,
        _chosen([row for row in rows if row.base == "mtl"]),
    )


def _chosen(rows: Sequence[MethodRow]) -> str | None:
    """Return the key of the method that is best on the validation rows, among those with the most seeds."""
    seeds = max((len(row.seeds) for row in rows), default=0)
    candidates = [row for row in rows if len(row.seeds) == seeds]
    return max(candidates, key=lambda row: row.mean.for_choosing).method if len(rows) > 1 else None


def _method_row(
    names: tuple[str, str, Base],
    mine: Sequence[CellResult],
    standard: Sequence[CellResult],
    central: Sequence[CellResult],
) -> MethodRow:
    """Return one method's row; `names` is its key, label and base."""
    is_standard = mine is standard
    tasks = {}
    for task, outcome in mine[0].tasks.items():
        values = _by_seed(mine, task)
        tasks[task] = TaskRow(
            summary(list(values.values())),
            summary([one.tasks[task].value_at_best for one in mine]),
            None if is_standard else paired_difference(values, _by_seed(standard, task)),
            ratio_of_means(values, _by_seed(central, task)),
            outcome.steps,
            _mean_curve([one.tasks[task].by_round for one in mine]),
            _held_back_row([task], mine, None if is_standard else standard),
        )
    moved = [one.bytes_up + one.bytes_down for one in mine if one.bytes_up is not None and one.bytes_down is not None]
    return MethodRow(
        *names,
        [one.cell.seed for one in mine],
        tasks,
        _mean_row(mine, None if is_standard else standard, central),
        mine[0].encoder_parameters,
        mine[0].held_parameters,
        stats.fmean(moved) if moved else None,
        stats.fmean(one.seconds for one in mine),
        mean_wall_time(walls) if (walls := [one.wall for one in mine if one.wall]) else None,
    )


def _mean_row(
    mine: Sequence[CellResult], standard: Sequence[CellResult] | None, central: Sequence[CellResult]
) -> MeanRow:
    def by_seed(results: Sequence[CellResult]) -> dict[int, float]:
        return {one.cell.seed: stats.fmean(task.value for task in one.tasks.values()) for one in results}

    values = by_seed(mine)
    last = [task.by_round[max(task.by_round)] for one in mine for task in one.tasks.values()]
    return MeanRow(
        summary(list(values.values())),
        None if standard is None else paired_difference(values, by_seed(standard)),
        ratio_of_means(values, by_seed(central)),
        stats.fmean(last),
        _held_back_row(list(mine[0].tasks), mine, standard),
    )


def _held_back_row(
    tasks: Sequence[str], mine: Sequence[CellResult], standard: Sequence[CellResult] | None
) -> HeldBackRow | None:
    """Return a method's row for the mean of some tasks on the held-back rows; None if no rows are held back."""

    def by_seed(results: Sequence[CellResult]) -> dict[int, float]:
        values = {one.cell.seed: [one.tasks[task].held_back_value for task in tasks] for one in results}
        return {
            seed: stats.fmean(known)
            for seed, of_seed in values.items()
            if len(known := [value for value in of_seed if value is not None]) == len(of_seed)
        }

    if not (values := by_seed(mine)):
        return None
    difference = None if standard is None else paired_difference(values, by_seed(standard))
    return HeldBackRow(summary(list(values.values())), difference)


def _by_seed(results: Sequence[CellResult], task: str) -> dict[int, float]:
    return {one.cell.seed: one.tasks[task].value for one in results}


def _mean_curve(seeds: Sequence[Mapping[int, float]]) -> dict[int, float]:
    rounds = sorted(set.intersection(*(set(curve) for curve in seeds)))
    return {round_: stats.fmean(curve[round_] for curve in seeds) for round_ in rounds}
