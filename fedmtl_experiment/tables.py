"""Write comparisons as a Markdown page: how to read it, an overview, and the tables of each setting and encoder."""

from __future__ import annotations

from collections.abc import Sequence

from fedmtl_experiment.report import Comparison, HeldBackRow
from fedmtl_experiment.statistics import Difference, Summary
from fedmtl_experiment.timing import WallTime

DIFFERENCES_FILE = "differences.png"
"""The file name of the chart of differences to single-task federations."""

_HOW_TO_READ = """\
- A method's row has its label and its key in the experiment's configuration.
- ± is the sample standard deviation over seeds. A difference is the mean of the differences seed by seed, and SE is the
  standard error of that mean. Three seeds don't show a difference of two standard errors or less.
- Compare methods with different numbers of seeds by their differences, not by their values: values differ more between
  seeds than between methods.
- The trivial baseline is the share of the most frequent class for accuracy, and 0 for a correlation.
- "mean" is the mean of the tasks' main metrics. "mean / centralized" is its ratio to the mean of centralized training.
- "validation mean" is the mean of the main metrics on the validation rows after the last round. The chosen method is
  the federation of all tasks with the highest validation mean, among those with the most seeds.
- All other metrics are of the reported rows, all rows together.
- "best round" is the model of the round that was best on the validation rows, separately for each task. If clients keep
  parameters for themselves, "best round" is the last round.
- "parameters held" are those of all models that servers keep; for each client alone, those of all clients' models.
  "encoders held" is the number of parameters held divided by the size of one encoder.
- "MB sent" are encoded bytes in both directions. Clients that train alone send nothing, and moving rows to one place is
  not counted.
- "seconds" are of the whole machine, with the start of all processes. They depend more on the machine than on the
  method.
- In the plots, the chosen method is red. In the plots by round, gray lines are the federations of all tasks that are
  neither chosen nor the first of the configuration.
- In the bar plots, a bar with fewer seeds than others has their number in its label. The mark across a bar is the value
  of single-task federations with that bar's seeds.
"""


_HOW_TO_READ_WALL = """\
- "wall seconds" are of a whole cell, from the drawing of its rows to its result; the columns after it are its parts. In
  each round, "training" and "evaluation" are those of the client that was busy longest, and "exchange" is the rest of
  the round: transfers, aggregation and waiting. "reporting" is the evaluation on the reported rows. "start-up" is all
  else. Cells of older versions don't have these columns.
"""

_HOW_TO_READ_HELD_BACK = """\
- Held-back rows are rows of the training file that are neither trained on nor used for any choice. They confirm a
  choice that was made on the validation rows.
"""


def markdown(comparisons: Sequence[Comparison], *, finished: int, planned: int) -> str:
    """Return the comparisons as a Markdown page."""
    lines = ["# Results by setting and encoder", "", f"{finished} of {planned} cells are finished.", ""]
    rows = [row for comparison in comparisons for row in comparison.methods]
    how_to_read = _HOW_TO_READ + (_HOW_TO_READ_HELD_BACK if any(row.mean.held_back for row in rows) else "")
    how_to_read += _HOW_TO_READ_WALL if any(row.wall for row in rows) else ""
    lines += [*_overview(comparisons), "## How to read the tables", "", how_to_read]
    for comparison in comparisons:
        lines += [f"## {comparison.title}", "", *_metrics_table(comparison), ""]
        lines += [*_chosen_line(comparison), *_differences_table(comparison), *_held_back_table(comparison)]
        lines += [*_costs_table(comparison), ""]
        lines += [*_image(comparison, "curves", "Main metric on the validation rows by round"), ""]
        lines += [*_image(comparison, "bars", "Main metric on the reported rows by method"), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _overview(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a table with a line for each comparison: the chosen federation of all tasks minus single-task ones."""
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
                row.title,
                str(next(iter(differences.values())).n),
                f"{lowest} {_difference(differences[lowest])}",
                f"{highest} {_difference(differences[highest])}",
                _difference(row.mean.to_standard),
                _number(row.mean.to_central),
                f"{row.held_parameters / row.encoder_parameters:.2f}",
            ]
        )
    heads = ["setting, encoder", "chosen", "seeds", "lowest task", "highest task", "mean", "mean / centralized"]
    title = "One federation of all tasks, as chosen on the validation rows, minus single-task federations:"
    chart = f"![Differences to single-task federations, for each setting, encoder and task]({DIFFERENCES_FILE})"
    return [title, "", *_table([*heads, "encoders held"], lines, text_columns=2), "", chart, ""] if lines else []


def _metrics_table(comparison: Comparison) -> list[str]:
    tasks = list(comparison.metrics)
    heads = [f"{task} {metric}" for task, metric in comparison.metrics.items()]
    rows = [
        ["trivial baseline", "", *(_number(comparison.trivial[task]) for task in tasks), "", "", ""],
        *(
            [
                row.title,
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
                f"{row.title}, best round",
                str(len(row.seeds)),
                *(_plus_minus(row.tasks[task].value_at_best) for task in tasks),
                *[""] * 3,
            ]
            for row in comparison.main
        ),
    ]
    return _table(["method", "seeds", *heads, "mean", "mean / centralized", "validation mean"], rows)


def _differences_table(comparison: Comparison) -> list[str]:
    tasks = list(comparison.metrics)
    rows = [
        [
            row.title,
            *(_difference(row.tasks[task].to_standard) for task in tasks),
            _difference(row.mean.to_standard),
        ]
        for row in comparison.methods
        if any(row.tasks[task].to_standard for task in tasks)
    ]
    return [*_table(["difference to single-task federations", *tasks, "mean"], rows), ""] if rows else []


def _held_back_table(comparison: Comparison) -> list[str]:
    """Return a table of the metrics on the held-back rows, with differences; nothing if no rows are held back."""
    tasks = list(comparison.metrics)
    lines = [
        [row.title, *(_held_back(one) for one in [*(row.tasks[task].held_back for task in tasks), row.mean.held_back])]
        for row in comparison.methods
        if row.mean.held_back
    ]
    return [*_table(["held-back rows, and difference", *tasks, "mean"], lines), ""] if lines else []


def _held_back(row: HeldBackRow | None) -> str:
    if row is None:
        return "–"
    difference = "" if row.to_standard is None else f", {_difference(row.to_standard)}"
    return f"{_plus_minus(row.value)}{difference}"


def _chosen_line(comparison: Comparison) -> list[str]:
    row = comparison.best
    return [f"Chosen on the validation rows: {row.title}.", ""] if comparison.chosen and row else []


def _costs_table(comparison: Comparison) -> list[str]:
    has_wall = any(row.wall for row in comparison.methods)
    rows = [
        [
            row.title,
            f"{row.held_parameters:,}",
            f"{row.held_parameters / row.encoder_parameters:.2f}",
            "–" if row.bytes_moved is None else f"{row.bytes_moved / 1e6:,.1f}",
            " + ".join(f"{task.steps:,}" for task in row.tasks.values()),
            f"{row.seconds:,.0f}",
            *(_wall_columns(row.wall) if has_wall else []),
        ]
        for row in comparison.methods
    ]
    heads = ["method", "parameters held", "encoders held", "MB sent", "steps by task", "seconds"]
    return _table([*heads, *(_WALL_HEADS if has_wall else [])], rows)


_WALL_HEADS = ["wall seconds", "start-up", "training", "evaluation", "exchange", "reporting"]


def _wall_columns(wall: WallTime | None) -> list[str]:
    if wall is None:
        return ["–"] * len(_WALL_HEADS)
    parts = (wall.total, wall.start_up, wall.training, wall.evaluation, wall.exchange, wall.reporting)
    return [f"{part:,.0f}" for part in parts]


def _image(comparison: Comparison, kind: str, text: str) -> list[str]:
    return [f"![{text}: {comparison.setting}, {comparison.encoder}]({comparison.figure_name(kind)})"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    """Return a table; the columns after the first `text_columns` are aligned to the right."""
    lines = [heads, ["---"] * text_columns + ["---:"] * (len(heads) - text_columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _plus_minus(value: Summary) -> str:
    return f"{value.mean:.3f}" if value.std is None else f"{value.mean:.3f} ± {value.std:.3f}"


def _difference(value: Difference | None) -> str:
    if value is None:
        return "–"
    return f"{value.mean:+.3f}" + ("" if value.standard_error is None else f" (SE {value.standard_error:.3f})")
