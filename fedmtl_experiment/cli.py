"""The command line `fedmtl-experiment`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedmtl_core import logs
from fedmtl_core.errors import FedMTLError, StoreError, UserError
from fedmtl_core.runtime.cli import LogLevel, new_app
from fedmtl_core.runtime.help_text import reflowed
from fedmtl_experiment import cells as grid
from fedmtl_experiment import config as configuration
from fedmtl_experiment.config import Experiment
from fedmtl_experiment.job_processes import run_side_by_side
from fedmtl_experiment.jobs import compute_all
from fedmtl_experiment.results import Folder
from fedmtl_local.forked import preload
from fedmtl_local.interrupts import interruptible
from fedmtl_local.processes import num_processors

app = new_app()

Jobs = Annotated[
    int, typer.Option(min=1, help="Number of cells to compute side by side, each with its share of the processors.")
]
Processors = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of processors for all cells together. If not given, all that this process may use."
    ),
]


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
    jobs: Jobs = 1,
    processors: Processors = None,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Keep each cell's rows, runs and logs in the results' folder work/.")
    ] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Lowest level to log.")] = LogLevel.warning,
    is_job: Annotated[bool, typer.Option("--job", hidden=True, help="Compute cells without a report.")] = False,
) -> None:
    """Compare clients alone, single-task federations, one federation of all tasks, and centralized training.

    Federations are real servers and clients, as processes on this machine. Finished cells are not computed again: after
    Ctrl-C, the same command continues with the others. Several commands with one folder compute each cell only once.
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
    to_do = [cell for cell in cells if cell not in done]
    if not is_job:
        _say(console, f"{config}: {len(done)} of {len(cells)} cells are finished")
    if not report_only and to_do:
        try:
            with interruptible():
                if jobs > 1:
                    share = max(1, (processors or num_processors()) // jobs)  # also if fewer cells are left
                    arguments = _arguments(config, folder, only or (), share, log_level, keep_runs=keep_runs)
                    run_side_by_side(arguments, min(jobs, len(to_do)), partial(_say, console))
                else:
                    _compute(experiment, folder, to_do, len(cells), console, keep_runs=keep_runs, processors=processors)
        except KeyboardInterrupt:
            left = sum(not folder.is_finished(cell) for cell in cells)
            typer.echo(f"stopped with {left} of {len(cells)} cells to do; repeat the command to continue", err=True)
            raise
    if not is_job:
        _report(experiment, folder, console)


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _arguments(
    config: Path, folder: Folder, only: Sequence[str], processors: int, log_level: LogLevel, *, keep_runs: bool
) -> list[str]:
    """Return the command line of one of several processes that compute the same cells."""
    arguments = ["--job", "--config", str(config), "--results", str(folder.path), "--processors", str(processors)]
    arguments += [part for pattern in only for part in ("--only", pattern)]
    return [*arguments, "--log-level", log_level.value, *(["--keep-runs"] if keep_runs else [])]


def _compute(
    experiment: Experiment,
    folder: Folder,
    cells: list[grid.Cell],
    planned: int,
    console: Console,
    *,
    keep_runs: bool,
    processors: int | None,
) -> None:
    if any(experiment.methods[cell.method].base != "central" for cell in cells):
        preload()  # imports PyTorch at the same time as this process
    from fedmtl_experiment.progress import ConsoleProgress
    from fedmtl_experiment.runner import Runner

    def compute(cell: grid.Cell) -> None:
        try:
            runner.compute(cell)
        except FedMTLError as error:
            kind = UserError if isinstance(error, UserError) else FedMTLError
            left = folder.work(cell)
            where = f"\nIts rows, runs and logs are in {left}" if left.exists() else ""
            raise kind(f"cell {cell.id}: {error}{where}") from None

    with ConsoleProgress(console, planned - len(cells), planned) as progress:
        runner = Runner(experiment, folder, progress, keep_runs=keep_runs, processors=processors)
        runner.require_possible(cells)
        compute_all(cells, folder, compute, progress)


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
