"""The command line `fedmtl-experiment`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import filelock
import typer
from rich.console import Console

from fedmtl_core import logs
from fedmtl_core.errors import FedMTLError, StoreError, UserError
from fedmtl_core.runtime.cli import LogLevel, new_app
from fedmtl_core.runtime.help_text import reflowed
from fedmtl_experiment import cells as grid
from fedmtl_experiment import config as configuration
from fedmtl_experiment.config import Experiment
from fedmtl_experiment.results import Folder
from fedmtl_local.interrupts import interruptible

app = new_app()


@app.command()
@reflowed
def run(
    config: Annotated[Path, typer.Option(help="Experiment file (YAML).", show_default=False)],
    results: Annotated[
        Path | None, typer.Option(help="Folder of the results. If not given, the file's results_dir.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Select cells by a pattern SETTING/ENCODER/METHOD/SEED with * and ?; repeatable.",
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List the cells with their states, finished or to do, and exit.")
    ] = False,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Write tables and plots of the finished cells without computing others."),
    ] = False,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Keep each cell's rows, runs and logs in the results' folder work/.")
    ] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Lowest level to log.")] = LogLevel.warning,
) -> None:
    """Compare clients alone, single-task federations, one federation of all tasks, and centralized training.

    Federations are real servers and clients, as processes on this machine. Finished cells are not computed again: after
    Ctrl-C, the same command continues with the remaining cells.
    """
    logs.configure(level=log_level.value)
    experiment = configuration.load(config)
    cells = grid.plan(experiment, only or ())
    folder = Folder(results or experiment.results_dir)
    done = folder.finished({cell: grid.inputs(experiment, cell) for cell in cells})
    if list_:
        for cell in cells:
            typer.echo(f"{'finished' if cell in done else 'to do':<9} {cell.id}")
        return
    console = Console()
    console.print(f"{config}: {len(done)} of {len(cells)} cells are finished", soft_wrap=True, highlight=False)
    if not report_only:
        try:
            with interruptible(), _locked(folder.path):
                _compute(
                    experiment, folder, [cell for cell in cells if cell not in done], len(cells), console, keep_runs
                )
        except KeyboardInterrupt:
            left = len(cells) - len(folder.finished({cell: grid.inputs(experiment, cell) for cell in cells}))
            typer.echo(f"stopped with {left} of {len(cells)} cells to do; repeat the command to continue", err=True)
            raise
    _report(experiment, folder, console)


def _compute(
    experiment: Experiment, folder: Folder, cells: list[grid.Cell], planned: int, console: Console, keep_runs: bool
) -> None:
    from fedmtl_experiment.progress import ConsoleProgress
    from fedmtl_experiment.runner import Runner

    with ConsoleProgress(console, planned - len(cells), planned) as progress:
        runner = Runner(experiment, folder, progress, keep_runs=keep_runs)
        runner.require_possible(cells)
        for cell in cells:
            try:
                runner.compute(cell)
            except FedMTLError as error:
                kind = UserError if isinstance(error, UserError) else FedMTLError
                left = folder.work(cell)
                where = f"\nIts rows, runs and logs are in {left}" if left.exists() else ""
                raise kind(f"cell {cell.id}: {error}{where}") from None


def _report(experiment: Experiment, folder: Folder, console: Console) -> None:
    """Report on all finished cells, including those that `--only` excludes."""
    from fedmtl_experiment.runner import write_report

    cells = grid.plan(experiment)
    done = folder.finished({cell: grid.inputs(experiment, cell) for cell in cells})
    if not done:
        raise StoreError(f"no cell is finished in {folder.path}, so there is nothing to report")
    written = write_report(experiment, folder, done, len(cells))
    console.print(written[0].read_text(encoding="utf-8"), soft_wrap=True, highlight=False, markup=False)
    console.print("Written: " + ", ".join(str(path) for path in written), soft_wrap=True, highlight=False)


def _locked(folder: Path) -> AbstractContextManager[object]:
    """Lock the results against a second experiment; the context manager releases the lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(folder / "lock", timeout=0).acquire()
    except filelock.Timeout:
        raise StoreError(f"another experiment is computing in {folder}; choose another folder with --results") from None
    except OSError as error:
        raise StoreError(f"{folder} can't be written: {error.strerror or error}") from None
