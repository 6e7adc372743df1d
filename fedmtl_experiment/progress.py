"""Show an experiment's progress: bars on a terminal, otherwise a line for each run and cell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from fedmtl_core.identifiers import name_some
from fedmtl_experiment.cells import Cell
from fedmtl_experiment.results import CellResult


class ConsoleProgress:
    """A context manager that shows finished cells and rounds.

    Args:
        console: the console to write to.
        finished: the number of cells that are already finished.
        planned: the number of all cells.
    """

    def __init__(self, console: Console, finished: int, planned: int):
        self._console = console
        self._finished, self._planned = finished, planned
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._cells = self._bars.add_task("cells", total=planned, completed=finished)
        self._rounds = self._bars.add_task("rounds", total=None)

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def run_started(self, cell: Cell, name: str, rounds: int) -> None:
        self._bars.reset(self._rounds, total=rounds, description=f"{cell.id}: {name}")
        if not self._console.is_terminal:
            self._say(f"{cell.id}: {name}")

    def round_opened(self, done: int) -> None:
        self._bars.update(self._rounds, completed=done)

    def evaluation_started(self, cell: Cell, name: str, what: str) -> None:
        self._bars.reset(self._rounds, total=None, description=f"{cell.id}: {name}: evaluating {what}")

    def found_finished(self) -> None:
        """Count a cell that another process has finished."""
        self._finished += 1
        self._bars.update(self._cells, completed=self._finished)

    def waiting_for(self, cells: Sequence[Cell]) -> None:
        """Tell that only cells remain that other processes compute."""
        text = f"waiting for cells that other processes compute: {name_some([one.id for one in cells])}"
        self._bars.reset(self._rounds, total=None, description=text)
        if not self._console.is_terminal:
            self._say(text)

    def cell_finished(self, result: CellResult) -> None:
        self._finished += 1
        self._bars.update(self._cells, completed=self._finished)
        values = "  ".join(f"{task} {outcome.value:.3f}" for task, outcome in result.tasks.items())
        self._say(f"{result.cell.id}: {values}  ({result.seconds:.0f} s; {self._finished} of {self._planned} cells)")

    def _say(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}", soft_wrap=True, highlight=False, markup=False)
