"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedmtl_core.identifiers import name_task


def results_table(results: Mapping[str, Mapping[str, Any]], run_dir: Path, console: Console | None = None) -> None:
    """Print the results of a run, task by task, from the contents of its `results.json`."""
    table = Table(title="Metric of each task's model on its evaluation rows", title_justify="left")
    table.add_column("task")
    table.add_column("metric")
    for column in ("before round 1", "after the last", "best", "best round"):
        table.add_column(column, justify="right")
    for task, result in results.items():
        table.add_row(
            name_task(task, auxiliary=result["auxiliary"]),
            result["metric"],
            _value(result, "first", 0),
            _value(result, "last", result["last_round"]),
            *(_number(result[key]) for key in ("best", "best_round")),
        )
    console = console or Console()
    console.print(table)
    console.print(f"Run folder: {run_dir}", soft_wrap=True, highlight=False)


def _value(result: Mapping[str, Any], key: str, round_: int | None) -> str:
    """Format the metric of a model; `undefined` if its clients measured it and it has no value."""
    is_measured = round_ is not None and round_ in map(int, result.get("measured", ()))
    return "undefined" if result[key] is None and is_measured else _number(result[key])


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
