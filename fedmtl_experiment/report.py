"""What the cells say together: numbers, tables and plots. From results alone; nothing is measured here."""

from __future__ import annotations

import statistics as stats
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fedmtl_experiment.config import Base
from fedmtl_experiment.results import CellResult
from fedmtl_experiment.statistics import Difference, Summary, paired_difference, ratio_of_means, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WORDS: Mapping[Base, str] = {
    "local": "each client alone",
    "standard": "a federation per task",
    "mtl": "one federation of all tasks",
    "central": "all data in one place",
}
_COLOURS: Mapping[Base, str] = {"local": "C4", "standard": "C1", "mtl": "C0", "central": "C2"}
_COLOUR_OF_BEST = "C3"
_COLOUR_OF_OTHERS = "0.8"
_MARK = "a federation per task, same seeds"


@dataclass(frozen=True)
class TaskRow:
    """One method on one task."""

    value: Summary
    """The main metric of the final model on the rows for reporting."""
    value_at_best: Summary
    """Likewise of the model of the round that was best on the rows for choosing."""
    to_standard: Difference | None
    """Against a federation per task; None where there is none to compare with."""
    to_central: float | None
    """The share of what all data in one place come to."""
    steps: int
    by_round: Mapping[int, float]
    """On the rows for choosing, mean over seeds."""


@dataclass(frozen=True)
class MeanRow:
    """One method over all tasks alike: the mean of their main metrics, seed by seed."""

    value: Summary
    """On the rows for reporting."""
    to_standard: Difference | None
    to_central: float | None
    for_choosing: float
    """On the rows for choosing, of the final model: mean over tasks and seeds."""


@dataclass(frozen=True)
class MethodRow:
    """One method in one setting."""

    method: str
    base: Base
    seeds: Sequence[int]
    tasks: Mapping[str, TaskRow]
    mean: MeanRow
    encoder_parameters: int
    held_parameters: int
    bytes_moved: float | None
    """Up and down, mean over seeds."""
    seconds: float
    """Mean over seeds."""


@dataclass(frozen=True)
class Comparison:
    """The methods in one setting with one encoder."""

    setting: str
    encoder: str
    metrics: Mapping[str, str]
    """Main metric by task."""
    report_rows: Mapping[str, int]
    trivial: Mapping[str, float | None]
    """By task, what the metric comes to without reading a text."""
    methods: Sequence[MethodRow]
    chosen: str | None
    """Of the federations of all tasks the best one on the rows for choosing, among those with the most seeds; None if
    there is but one."""

    @property
    def title(self) -> str:
        return f"{self.setting}, {self.encoder}"

    @property
    def best(self) -> MethodRow | None:
        """The federation of all tasks that one would take: the chosen one, or the only one."""
        federated = [row for row in self.methods if row.base == "mtl"]
        return next((row for row in federated if self.chosen in (None, row.method)), None)

    @property
    def firsts(self) -> Mapping[Base, str]:
        """The first method of each kind."""
        return {row.base: row.method for row in reversed(self.methods)}

    @property
    def main(self) -> list[MethodRow]:
        """The first method of each kind, and the federation of all tasks that one would take."""
        return [row for row in self.methods if row.method in (self.firsts[row.base], self.chosen)]


def compare(results: Sequence[CellResult], bases: Mapping[str, Base]) -> list[Comparison]:
    """Put the results of each setting and encoder side by side.

    Args:
        results: finished cells, in the order of the tables to be.
        bases: of the methods, in the order of the tables' rows.
    """
    grids = dict.fromkeys((one.cell.setting, one.cell.encoder) for one in results)
    return [
        _comparison([one for one in results if (one.cell.setting, one.cell.encoder) == grid], bases) for grid in grids
    ]


def to_json(comparisons: Sequence[Comparison], *, finished: int, planned: int) -> dict[str, object]:
    """The comparisons as JSON has them, with how much of the experiment they are of."""
    return {
        "cells_finished": finished,
        "cells_planned": planned,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }


def markdown(comparisons: Sequence[Comparison], *, finished: int, planned: int) -> str:
    """The comparisons as tables."""
    lines = [f"{finished} of {planned} cells are finished.", "", *_overview(comparisons)]
    for comparison in comparisons:
        lines += [f"## {comparison.title}", "", *_metrics_table(comparison), ""]
        lines += [*_chosen_line(comparison), *_differences_table(comparison), "", *_costs_table(comparison), ""]
    return "\n".join(lines)


def _overview(comparisons: Sequence[Comparison]) -> list[str]:
    """A line for each comparison: the federation of all tasks that one would take, against a federation per task."""
    lines = []
    for comparison in comparisons:
        row = comparison.best
        differences = {
            task: one.to_standard for task, one in (row.tasks.items() if row else ()) if one.to_standard is not None
        }
        if row is None or not differences:
            continue
        lowest, highest = (choose(differences, key=lambda task: differences[task].mean) for choose in (min, max))
        lines.append(
            [
                comparison.title,
                row.method,
                str(next(iter(differences.values())).n),
                f"{lowest} {_difference(differences[lowest])}",
                f"{highest} {_difference(differences[highest])}",
                _difference(row.mean.to_standard),
                _number(row.mean.to_central),
                f"{row.held_parameters / row.encoder_parameters:.2f}",
            ]
        )
    heads = ["comparison", "chosen", "seeds", "lowest task", "highest task", "mean", "mean / central", "encoders held"]
    title = "All tasks in one federation, as chosen on the validation rows, minus a federation per task:"
    return [title, "", *_table(heads, lines), ""] if lines else []


def curves(comparison: Comparison) -> Figure:
    """Every task's metric by round, a line for each method; on the rows for choosing, mean over seeds.

    The main ones have colours, the other federations of all tasks are grey.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes, task: str) -> None:
        main = [row.method for row in comparison.main]
        others = [row for row in comparison.methods if row.method not in main]
        for row in comparison.main:
            axes.plot(*_points(row, task), color=_colour(comparison, row), marker="o", markersize=3, label=row.method)
        for row in others:
            label = "others" if row is others[0] else f"_{row.method}"  # the legend names them once
            axes.plot(*_points(row, task), color=_COLOUR_OF_OTHERS, linewidth=1, zorder=1, label=label)
        axes.set(xlabel="round (0: before the first)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)

    figure = _panels(comparison, "validation", draw)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def bars(comparison: Comparison) -> Figure:
    """Every task's reported metric, a bar for each method, with the standard deviation over seeds.

    The mark across a bar is what a federation per task comes to with that method's seeds: that, and not another bar, is
    what it is to be held against. The dotted line is what it comes to without reading a text.
    """
    most = max(len(row.seeds) for row in comparison.methods)

    def label(row: MethodRow) -> str:
        return row.method if len(row.seeds) == most else f"{row.method} ({_counted(len(row.seeds), 'seed')})"

    def draw(axes: Axes, task: str) -> None:
        marks = []
        for place, row in enumerate(comparison.methods):
            value, difference = row.tasks[task].value, row.tasks[task].to_standard
            axes.barh(place, value.mean, xerr=value.std, capsize=3, ecolor="0.4", color=_colour(comparison, row))
            if difference is not None:
                marks.append((value.mean - difference.mean, place))
        if marks:
            at, places = zip(*marks, strict=True)
            axes.scatter(at, places, marker="|", s=90, linewidths=1.6, color="black", zorder=3, label=_MARK)
        trivial = comparison.trivial[task]
        if trivial is not None:
            axes.axvline(trivial, color="black", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(comparison.methods)), [label(row) for row in comparison.methods])
        axes.invert_yaxis()
        axes.set_xlabel(f"{comparison.metrics[task]} (reported)")
        axes.grid(alpha=0.3, axis="x")

    figure = _panels(comparison, "", draw, height=1.5 + 0.25 * len(comparison.methods))
    for axes in figure.axes[1:]:
        axes.tick_params(labelleft=False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", frameon=False)
    return figure


def _comparison(results: Sequence[CellResult], bases: Mapping[str, Base]) -> Comparison:
    of_method = {method: [one for one in results if one.cell.method == method] for method in bases}
    of_base = {base: of_method[method] for method, base in reversed([*bases.items()]) if of_method[method]}
    first = results[0]
    rows = [
        _method_row(method, base, of_method[method], of_base.get("standard", []), of_base.get("central", []))
        for method, base in bases.items()
        if of_method[method]
    ]
    return Comparison(
        first.cell.setting,
        first.cell.encoder,
        {task: outcome.metric for task, outcome in first.tasks.items()},
        {task: outcome.report_rows for task, outcome in first.tasks.items()},
        {task: outcome.trivial for task, outcome in first.tasks.items()},
        rows,
        _chosen([row for row in rows if row.base == "mtl"]),
    )


def _chosen(rows: Sequence[MethodRow]) -> str | None:
    """The best of methods, by what was measured for choosing alone."""
    seeds = max((len(row.seeds) for row in rows), default=0)
    candidates = [row for row in rows if len(row.seeds) == seeds]
    return max(candidates, key=lambda row: row.mean.for_choosing).method if len(rows) > 1 else None


def _method_row(
    method: str,
    base: Base,
    mine: Sequence[CellResult],
    standard: Sequence[CellResult],
    central: Sequence[CellResult],
) -> MethodRow:
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
        )
    moved = [one.bytes_up + one.bytes_down for one in mine if one.bytes_up is not None and one.bytes_down is not None]
    return MethodRow(
        method,
        base,
        [one.cell.seed for one in mine],
        tasks,
        _mean_row(mine, None if is_standard else standard, central),
        mine[0].encoder_parameters,
        mine[0].held_parameters,
        stats.fmean(moved) if moved else None,
        stats.fmean(one.seconds for one in mine),
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
    )


def _by_seed(results: Sequence[CellResult], task: str) -> dict[int, float]:
    return {one.cell.seed: one.tasks[task].value for one in results}


def _mean_curve(seeds: Sequence[Mapping[int, float]]) -> dict[int, float]:
    rounds = sorted(set.intersection(*(set(curve) for curve in seeds)))
    return {round_: stats.fmean(curve[round_] for curve in seeds) for round_ in rounds}


def _points(row: MethodRow, task: str) -> tuple[list[int], list[float]]:
    by_round = row.tasks[task].by_round
    return list(by_round), list(by_round.values())


def _colour(comparison: Comparison, row: MethodRow) -> str:
    return _COLOUR_OF_BEST if row.method == comparison.chosen else _COLOURS[row.base]


def _metrics_table(comparison: Comparison) -> list[str]:
    tasks = list(comparison.metrics)
    heads = [f"{task} {metric}" for task, metric in comparison.metrics.items()]
    rows = [
        ["without reading", "", *(_number(comparison.trivial[task]) for task in tasks), "", "", ""],
        *(
            [
                f"{row.method}: {_WORDS[row.base]}" if row.method == comparison.firsts[row.base] else row.method,
                str(len(row.seeds)),
                *(_plus_minus(row.tasks[task].value) for task in tasks),
                _plus_minus(row.mean.value),
                _number(row.mean.to_central),
                _number(row.mean.for_choosing),
            ]
            for row in comparison.methods
        ),
        *(
            [
                f"{row.method}, best round",
                str(len(row.seeds)),
                *(_plus_minus(row.tasks[task].value_at_best) for task in tasks),
                *[""] * 3,
            ]
            for row in comparison.main
        ),
    ]
    return _table(["method", "seeds", *heads, "mean", "mean / central", "validation mean"], rows)


def _differences_table(comparison: Comparison) -> list[str]:
    tasks = list(comparison.metrics)
    rows = [
        [
            f"{row.method} − standard",
            *(_difference(row.tasks[task].to_standard) for task in tasks),
            _difference(row.mean.to_standard),
        ]
        for row in comparison.methods
        if any(row.tasks[task].to_standard for task in tasks)
    ]
    return _table(["comparison", *tasks, "mean"], rows) if rows else []


def _chosen_line(comparison: Comparison) -> list[str]:
    return [f"Chosen on the validation rows: `{comparison.chosen}`.", ""] if comparison.chosen else []


def _costs_table(comparison: Comparison) -> list[str]:
    rows = [
        [
            row.method,
            f"{row.held_parameters:,}",
            f"{row.held_parameters / row.encoder_parameters:.2f}",
            "–" if row.bytes_moved is None else f"{row.bytes_moved / 1e6:,.1f}",
            " + ".join(f"{task.steps:,}" for task in row.tasks.values()),
            f"{row.seconds:,.0f}",
        ]
        for row in comparison.methods
    ]
    heads = ["method", "parameters held", "in encoders", "MB moved", "steps by task", "seconds"]
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _plus_minus(value: Summary) -> str:
    return f"{value.mean:.3f}" if value.std is None else f"{value.mean:.3f} ± {value.std:.3f}"


def _difference(value: Difference | None) -> str:
    if value is None:
        return "–"
    return f"{value.mean:+.3f}" + ("" if value.standard_error is None else f" (SE {value.standard_error:.3f})")


def _panels(comparison: Comparison, what: str, draw: Callable[[Axes, str], None], height: float = 3.6) -> Figure:
    """A panel for each task; with `what`, the metric and that are its upright axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(comparison.metrics)
    figure = Figure(figsize=(3.6 * len(tasks), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        draw(axes, task)
        axes.set_title(task, fontsize=10)
        if what:
            axes.set_ylabel(f"{comparison.metrics[task]} ({what})")
    return figure
