"""Draw comparisons: each task's metric by round and by method, and the differences to single-task federations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmtl_experiment.config import Base
from fedmtl_experiment.report import Comparison, MethodRow
from fedmtl_experiment.statistics import Difference

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS: Mapping[Base, str] = {"local": "C4", "standard": "C1", "mtl": "C0", "central": "C2"}
_COLOR_OF_CHOSEN = "C3"
_COLOR_OF_OTHERS = "0.8"
_MARK = "single-task federations, same seeds"
_CHOSEN = "chosen on the validation rows: method below the setting"
_MEAN = "mean"
_HEADING, _CHOICE = "heading of the setting", "chosen method"


@dataclass(frozen=True)
class DifferencePoint:
    """One method's difference to single-task federations, on one task or over all tasks."""

    setting: str
    encoder: str
    task: str
    """The task, or `mean` for the mean over tasks."""
    method: str
    is_chosen: bool
    difference: Difference


def difference_points(comparisons: Sequence[Comparison]) -> list[DifferencePoint]:
    """Return the points of the chart of differences.

    Each comparison has those of two methods: the chosen federation of all tasks, and the first one of the
    configuration. Comparisons without single-task federations have none, nor those with fewer seeds than others.
    """
    most = max((_num_seeds(comparison) for comparison in comparisons), default=0)
    return [
        DifferencePoint(comparison.setting, comparison.encoder, task, row.method, row is comparison.best, difference)
        for comparison in comparisons
        if _num_seeds(comparison) == most
        for row in comparison.methods
        if row is comparison.best or row.method == comparison.firsts.get("mtl")
        for task, difference in _differences_of(row).items()
    ]


def _num_seeds(comparison: Comparison) -> int:
    """Return the largest number of seeds of a method."""
    return max((len(row.seeds) for row in comparison.methods), default=0)


def _differences_of(row: MethodRow) -> dict[str, Difference]:
    """Return a method's differences to single-task federations by task, and that of the mean over tasks."""
    of_all = {task: one.to_standard for task, one in row.tasks.items()} | {_MEAN: row.mean.to_standard}
    return {task: difference for task, difference in of_all.items() if difference is not None}


def differences(comparisons: Sequence[Comparison]) -> Figure | None:
    """Draw the differences to single-task federations with two standard errors; None if there are none.

    The figure has a panel for each encoder, a group of lines for each setting, and a line for each task and their mean.
    """
    points = difference_points(comparisons)
    if not points:
        return None
    encoders = list(dict.fromkeys(point.encoder for point in points))
    lines = _difference_lines(points)
    figure = _figure(0.6 + 2.1 * len(encoders), 1.2 + 0.19 * len(lines))
    panels = figure.subplots(1, len(encoders), squeeze=False, sharex=True, sharey=True)[0]
    for axes, encoder in zip(panels, encoders, strict=True):
        axes.axvline(0, color="black", linewidth=0.9)
        for is_chosen in (False, True):
            mine = [point for point in points if (point.encoder, point.is_chosen) == (encoder, is_chosen)]
            _draw_points(axes, mine, lines, _CHOSEN if is_chosen else _label_of_first(comparisons))
        for comparison in comparisons:
            if comparison.encoder == encoder and (comparison.setting, _HEADING) in lines:
                _draw_heading(axes, comparison, lines[comparison.setting, _HEADING])
        axes.set_title(encoder, fontsize=10)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0, labelsize=8.5)
        axes.tick_params(axis="x", labelsize=8.5)
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(
        [line for (_, task), line in lines.items() if task not in (_HEADING, _CHOICE)],
        [task for _, task in lines if task not in (_HEADING, _CHOICE)],
    )
    figure.supxlabel("difference to single-task federations\n(bars: two standard errors)", fontsize=8.5)
    handles, names = _unique_legend(panels)
    figure.legend(handles, names, loc="outside upper center", frameon=False, fontsize=8.5)
    return figure


def curves(comparison: Comparison) -> Figure:
    """Draw every task's metric by round, a line for each method; on the validation rows, mean over seeds.

    The main methods have colors; the other federations of all tasks are gray.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes, task: str) -> None:
        main = [row.method for row in comparison.main]
        others = [row for row in comparison.methods if row.method not in main]
        for row in comparison.main:
            axes.plot(*_points(row, task), color=_color(comparison, row), marker="o", markersize=3, label=row.label)
        for row in others:
            label = "others" if row is others[0] else f"_{row.method}"  # the legend names them once
            axes.plot(*_points(row, task), color=_COLOR_OF_OTHERS, linewidth=1, zorder=1, label=label)
        axes.set(xlabel="round (0: before the first)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)

    figure = _panels(comparison, "validation", draw)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)), frameon=False)
    return figure


def bars(comparison: Comparison) -> Figure:
    """Draw every task's reported metric, a bar for each method, with the standard deviation over seeds.

    The mark across a bar is the value of single-task federations with that method's seeds: compare the bar with its
    mark, not with another bar. The dotted line is the trivial baseline.
    """
    most = max(len(row.seeds) for row in comparison.methods)

    def label(row: MethodRow) -> str:
        return row.label if len(row.seeds) == most else f"{row.label} ({_counted(len(row.seeds), 'seed')})"

    def draw(axes: Axes, task: str) -> None:
        marks = []
        for place, row in enumerate(comparison.methods):
            value, difference = row.tasks[task].value, row.tasks[task].to_standard
            axes.barh(place, value.mean, xerr=value.std, capsize=3, ecolor="0.4", color=_color(comparison, row))
            if difference is not None:
                marks.append((value.mean - difference.mean, place))
        if marks:
            at, places = zip(*marks, strict=True)
            axes.scatter(at, places, marker="|", s=90, linewidths=1.6, color="black", zorder=3, label=_MARK)
        trivial = comparison.trivial[task]
        if trivial is not None:
            axes.axvline(trivial, color="black", linewidth=0.8, linestyle=":", label="trivial baseline")
        axes.set_yticks(range(len(comparison.methods)), [label(row) for row in comparison.methods])
        axes.set_ylim(len(comparison.methods) - 0.4, -0.6)
        axes.set_xlabel(f"{comparison.metrics[task]} (reported)")
        axes.grid(alpha=0.3, axis="x")

    figure = _panels(comparison, "", draw, height=1.5 + 0.25 * len(comparison.methods), margin=1.8)
    for axes in figure.axes[1:]:
        axes.tick_params(labelleft=False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _difference_lines(points: Sequence[DifferencePoint]) -> dict[tuple[str, str], int]:
    """Return the chart's lines from top to bottom: for each setting its heading, its chosen method and its tasks."""
    tasks: dict[str, dict[str, None]] = {}
    for point in points:
        tasks.setdefault(point.setting, {})[point.task] = None
    keys = [(setting, line) for setting in tasks for line in (_HEADING, _CHOICE, *tasks[setting])]
    return {key: line for line, key in enumerate(keys)}


def _draw_heading(axes: Axes, comparison: Comparison, line: int) -> None:
    """Name the setting on one line and the chosen method on the next."""
    axes.axhspan(line - 0.5, line + 1.5, facecolor="0.93", zorder=2.4)
    chosen = comparison.best.label if comparison.best else ""
    for text, place, weight, size in ((comparison.setting_label, line, "bold", 8.2), (chosen, line + 1, "normal", 7.8)):
        axes.text(
            *(0.5, place, text),
            transform=axes.get_yaxis_transform(),
            horizontalalignment="center",
            verticalalignment="center_baseline",
            fontsize=size,
            fontweight=weight,
            zorder=4,
        )


def _label_of_first(comparisons: Sequence[Comparison]) -> str:
    """Return the label of the first federation of all tasks in the configuration."""
    rows = (row for one in comparisons for row in one.methods if row.method == one.firsts.get("mtl"))
    return next((row.label for row in rows), "")


def _draw_points(
    axes: Axes, points: Sequence[DifferencePoint], lines: Mapping[tuple[str, str], int], label: str
) -> None:
    if not points:
        return
    chosen = points[0].is_chosen
    errors = [2 * (point.difference.standard_error or 0.0) for point in points]
    axes.errorbar(
        [point.difference.mean for point in points],
        [lines[point.setting, point.task] + (-0.14 if chosen else 0.18) for point in points],
        xerr=errors,
        fmt="o" if chosen else "s",
        markersize=3.8 if chosen else 3.6,
        capsize=2,
        elinewidth=1.1,
        color=_COLOR_OF_CHOSEN if chosen else _COLORS["mtl"],
        markerfacecolor=_COLOR_OF_CHOSEN if chosen else "white",
        label=label,
        zorder=3,
    )


def _unique_legend(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """Return the legend's handles and labels, each label once."""
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)


def _points(row: MethodRow, task: str) -> tuple[list[int], list[float]]:
    by_round = row.tasks[task].by_round
    return list(by_round), list(by_round.values())


def _color(comparison: Comparison, row: MethodRow) -> str:
    return _COLOR_OF_CHOSEN if row.method == comparison.chosen else _COLORS[row.base]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _panels(
    comparison: Comparison, what: str, draw: Callable[[Axes, str], None], height: float = 3.6, margin: float = 0.0
) -> Figure:
    """Return a figure with a panel for each task; `what`, if given, follows the metric on the vertical axis."""
    tasks = list(comparison.metrics)
    figure = _figure(3.6 * len(tasks) + margin, height)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        draw(axes, task)
        axes.set_title(task, fontsize=10)
        if what:
            axes.set_ylabel(f"{comparison.metrics[task]} ({what})")
    return figure


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, on a white background."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
