"""Compute cells one after the other, store their results and write the report."""

from __future__ import annotations

import io
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar

import torch

from fedmtl_client.data import Rows, TaskData, load_task_data
from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.model.modeling import MultiTaskModel, load_tokenizer
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_experiment import plots, report, tables
from fedmtl_experiment.cells import (
    Cell,
    Federation,
    federations,
    inputs,
    multi_task_federation,
    run_values,
    steps_per_round,
)
from fedmtl_experiment.central import train_central
from fedmtl_experiment.config import Experiment, RowCounts
from fedmtl_experiment.evaluation import Candidate, Evaluator, RowEncoder
from fedmtl_experiment.federated import (
    FederatedRun,
    evaluate_checkpoints,
    evaluate_final,
    parameters_of,
    run_federation,
)
from fedmtl_experiment.results import CellResult, Folder, TaskOutcome, write_atomically
from fedmtl_experiment.rows import TaskRows, draw, trivial_baseline, without_texts, write_jsonl
from fedmtl_experiment.timing import RoundTimes, wall_time
from fedmtl_local.processes import num_processors
from fedmtl_server.model import MTLServerModel

_MOST_DRAWN = 64
"""The number of tasks whose drawn rows are kept in memory."""

_Key = TypeVar("_Key", str, int)


class _ReportFields(TypedDict):
    """The fields of an outcome that depend on the reported rows only."""

    report_rows: int
    trivial: float | None


class Progress(Protocol):
    """Receives progress: the start of runs, finished rounds, evaluations on reported rows, and finished cells."""

    def run_started(self, cell: Cell, name: str, rounds: int) -> None: ...
    def round_opened(self, done: int) -> None: ...
    def evaluation_started(self, cell: Cell, name: str, what: str) -> None: ...
    def cell_finished(self, result: CellResult) -> None: ...


class Runner:
    """Computes the cells of one experiment.

    Args:
        experiment: the experiment.
        folder: the folder of the results.
        progress: receives progress.
        keep_runs: keep the rows, runs and logs of finished cells.
        processors: the number of CPUs that a cell's processes and threads share; all that this process may use if None.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Folder,
        progress: Progress,
        *,
        keep_runs: bool = False,
        processors: int | None = None,
    ):
        self._experiment = experiment
        self._folder = folder
        self._progress = progress
        self._keep_runs = keep_runs
        self._processors = processors or num_processors()
        self._data: dict[str, TaskData] = {}
        self._drawn: dict[tuple[str, int, str, RowCounts], TaskRows] = {}
        self._encoder = RowEncoder()
        if processors:
            torch.set_num_threads(processors)

    def require_possible(self, cells: Sequence[Cell]) -> None:
        """Check the configurations, rows and tokenizers of all cells before the first one is computed.

        Raises:
            UserError: a configuration, a file or a tokenizer is invalid or missing; the message names it.
        """
        kinds = {(cell.setting, cell.encoder, cell.method): cell for cell in cells}.values()
        configs = [_whole_config(self._experiment, cell) for cell in kinds]
        for cell in {(cell.setting, cell.method): cell for cell in cells}.values():
            self.rows(cell)
        for source in {config.model.client_model or config.model.server_model for config in configs}:
            load_tokenizer(source)

    def compute(self, cell: Cell) -> CellResult:
        """Compute one cell and store its result.

        Raises:
            FedMTLError: the cell failed. Its rows, runs and logs remain in the folder.
        """
        began = time.monotonic()
        rows = self.rows(cell)
        if self._experiment.methods[cell.method].base == "central":
            result = self._central(cell, rows, began)
        else:
            result = self._federated(cell, rows, began)
        self._folder.save(result)
        if not self._keep_runs:
            self._folder.remove_work(cell)
        self._progress.cell_finished(result)
        return result

    def rows(self, cell: Cell) -> dict[str, TaskRows]:
        """Return a cell's rows by task, auxiliary tasks last.

        Auxiliary rows that contain a text of the other tasks' validation, reported or held-back rows are excluded.

        Raises:
            FedMTLError: the rows can't be loaded, or are fewer than the experiment requests.
        """
        setting, method = self._experiment.settings[cell.setting], self._experiment.methods[cell.method]
        rows = {
            task: self._draw(cell, task, counts, partial(self._all_rows, task))
            for task, counts in setting.tasks.items()
        }
        evaluated = [part for one in rows.values() for part in (one.validation, one.report, one.held_back) if part]
        return rows | {
            task: self._draw(cell, task, counts, partial(self._rows_without, task, evaluated))
            for task, counts in method.auxiliary.items()
        }

    def _draw(self, cell: Cell, task: str, counts: RowCounts, data: Callable[[], TaskData]) -> TaskRows:
        """Return a task's rows in a cell, which depend on nothing but the setting, the seed and the counts."""
        setting, key = self._experiment.settings[cell.setting], (cell.setting, cell.seed, task, counts)
        if key not in self._drawn:
            while len(self._drawn) >= _MOST_DRAWN:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[key] = draw(
                self._spec(task),
                data(),
                train_rows=counts.train_rows,
                validation_rows=setting.validation_rows,
                report_rows=setting.report_rows,
                seed=cell.seed,
                held_back_rows=None if self._experiment.tasks[task].auxiliary else setting.held_back_rows,
            )
        return self._drawn[key]

    def _all_rows(self, task: str) -> TaskData:
        if task not in self._data:
            self._data[task] = load_task_data(self._spec(task), self._experiment.tasks[task].data)
        return self._data[task]

    def _rows_without(self, task: str, evaluated: Sequence[Rows]) -> TaskData:
        return without_texts(self._all_rows(task), evaluated)

    def _spec(self, task: str) -> TaskSpec:
        return self._experiment.tasks[task].spec(task)

    def _evaluator(self, config: Config, rows: Mapping[str, TaskRows]) -> Evaluator:
        return Evaluator(config, {task: one.report for task, one in rows.items()}, self._encoder)

    def _held_back_evaluator(self, config: Config, rows: Mapping[str, TaskRows]) -> Evaluator:
        held_back = {task: one.held_back for task, one in rows.items() if one.held_back is not None}
        return Evaluator(config, held_back, self._encoder, "held-back")

    def _on_evaluation(self, cell: Cell, name: str, split: str) -> Callable[[Candidate], None]:
        return lambda one: self._progress.evaluation_started(cell, name, f"{one.label}, {split} rows")

    def _central(self, cell: Cell, rows: Mapping[str, TaskRows], cell_began: float) -> CellResult:
        config = _whole_config(self._experiment, cell)
        steps = self._steps(cell, config, rows)
        self._progress.run_started(cell, "central", config.training.num_rounds)
        began = time.monotonic()
        run = train_central(config, rows, steps, self._progress.round_opened, self._encoder)
        seconds = time.monotonic() - began
        evaluator, last = self._evaluator(config, rows), config.training.num_rounds
        final = self._measured(cell, run.model, rows, evaluator, last)
        held_back_evaluator = self._held_back_evaluator(config, rows)
        held_back = self._measured(cell, run.model, held_back_evaluator.tasks, held_back_evaluator, last, "held-back")
        at_best = dict(final)
        for best in sorted({round_ for round_, _ in run.best.values()} - {last}):
            tasks = [task for task, (round_, _) in run.best.items() if round_ == best]
            run.model.load_state_dict(run.best[tasks[0]][1])
            at_best |= self._measured(cell, run.model, tasks, evaluator, best)
        reporting = time.monotonic() - began - seconds
        times = RoundTimes(training=seconds - run.evaluation_seconds, evaluation=run.evaluation_seconds)
        outcomes = {
            task: TaskOutcome(
                metric=self._spec(task).main_metric,
                report=final[task],
                report_at_best=at_best[task],
                best_rounds=[run.best[task][0]],
                by_round=run.by_round[task],
                by_client={},
                steps=config.training.num_rounds * steps[task],
                held_back=held_back.get(task),
                **self._report_fields(task, one),
            )
            for task, one in rows.items()
        }
        summary = MTLServerModel.from_config(config, weights=False).summary()
        return CellResult(
            cell,
            inputs(self._experiment, cell),
            outcomes,
            summary.shared_parameters,
            summary.total_parameters,
            None,
            None,
            seconds,
            environment(self._processors),
            wall_time(time.monotonic() - cell_began, [times], reporting),
        )

    def _measured(
        self,
        cell: Cell,
        model: MultiTaskModel,
        tasks: Iterable[str],
        evaluator: Evaluator,
        round_: int,
        split: str = "reported",
    ) -> dict[str, dict[str, float]]:
        """Return the metrics of one model on several tasks."""
        candidates = [Candidate(task, round_, model) for task in tasks]
        on_start = self._on_evaluation(cell, "central", split)
        measured = evaluator.evaluate_all(candidates, self._processors, on_start)
        return {one.task: measured[one.key] for one in candidates}

    def _federated(self, cell: Cell, rows: Mapping[str, TaskRows], cell_began: float) -> CellResult:
        work = self._folder.begin_work(cell)
        for task, one in rows.items():
            write_jsonl(work / f"{task}-train.jsonl", self._spec(task), one.train)
            write_jsonl(work / f"{task}-validation.jsonl", self._spec(task), one.validation)
        rows = {task: rows[task] for task in self._experiment.settings[cell.setting].tasks}
        config = _whole_config(self._experiment, cell)
        evaluator, held_back_evaluator = self._evaluator(config, rows), self._held_back_evaluator(config, rows)
        runs, parameters, held_back, reporting = [], [], [], 0.0
        for federation in federations(self._experiment, cell):
            run = self._run(cell, federation, work)
            began = time.monotonic()
            on_start = self._on_evaluation(cell, federation.name, "reported")
            runs.append((federation, run, *evaluate_checkpoints(run, evaluator, self._processors, on_start)))
            on_start = self._on_evaluation(cell, federation.name, "held-back")
            held_back.append(evaluate_final(run, held_back_evaluator, self._processors, on_start))
            parameters.append(parameters_of(run))
            reporting += time.monotonic() - began
            if not self._keep_runs:
                shutil.rmtree(run.folder / "checkpoints")  # a cell may have many runs, and a run many models
        steps = self._steps(cell, config, rows)
        is_local = self._experiment.methods[cell.method].base == "local"
        outcomes = {}
        for task, one in rows.items():
            mine = [(federation, run, final, best) for federation, run, final, best in runs if task in run.best_rounds]
            metric = self._spec(task).main_metric
            outcomes[task] = TaskOutcome(
                metric=metric,
                report=_mean([final[task] for _, _, final, _ in mine]),
                report_at_best=_mean([best[task] for _, _, _, best in mine]),
                best_rounds=[run.best_rounds[task] for _, run, _, _ in mine],
                by_round=_mean([run.by_round[task] for _, run, _, _ in mine]),
                by_client={federation.name: final[task][metric] for federation, _, final, _ in mine}
                if is_local
                else {},
                steps=config.training.num_rounds * steps[task],
                held_back=_mean([of_run[task] for of_run in held_back if task in of_run]) if one.held_back else None,
                **self._report_fields(task, one),
            )
        return CellResult(
            cell,
            inputs(self._experiment, cell),
            outcomes,
            parameters[0][0],
            sum(held for _, held in parameters),
            None if is_local else sum(run.bytes_up for _, run, _, _ in runs),
            None if is_local else sum(run.bytes_down for _, run, _, _ in runs),
            sum(run.seconds for _, run, _, _ in runs),
            environment(self._processors),
            wall_time(time.monotonic() - cell_began, [run.rounds for _, run, _, _ in runs], reporting),
        )

    def _run(self, cell: Cell, federation: Federation, work: Path) -> FederatedRun:
        run_dir = work / f"run-{federation.name}"
        values = run_values(self._experiment, cell, federation, work, run_dir)
        num_rounds = configuration.validated(values, f"the run {federation.name}").training.num_rounds
        self._progress.run_started(cell, federation.name, num_rounds)
        return run_federation(values, run_dir, self._progress.round_opened, self._processors)

    def _steps(self, cell: Cell, config: Config, rows: Mapping[str, TaskRows]) -> dict[str, int]:
        """Return the optimizer steps of each task in a round."""
        counts = self._experiment.settings[cell.setting].tasks
        plans = {task: config.plan(task) for task in rows}
        return {
            task: steps_per_round(
                len(rows[task].train), counts[task].clients, plan.batch_size, plan.head_epochs + plan.local_epochs
            )
            for task, plan in plans.items()
        }

    def _report_fields(self, task: str, rows: TaskRows) -> _ReportFields:
        return {
            "report_rows": len(rows.report),
            "trivial": trivial_baseline(self._spec(task), rows.report.labels),
        }


def comparisons_of(experiment: Experiment, results: Mapping[Cell, CellResult]) -> list[report.Comparison]:
    """Return the comparisons of finished cells, in the order of the experiment's settings and encoders."""
    settings, encoders = list(experiment.settings), list(experiment.encoders)
    order = sorted(results, key=lambda cell: (settings.index(cell.setting), encoders.index(cell.encoder), cell.seed))
    return report.compare(
        [results[cell] for cell in order],
        {name: method.base for name, method in experiment.methods.items()},
        labels={name: method.label for name, method in experiment.methods.items() if method.label},
        setting_labels={name: setting.label for name, setting in experiment.settings.items() if setting.label},
    )


def write_report(
    experiment: Experiment, folder: Folder, results: Mapping[Cell, CellResult], planned: int
) -> list[Path]:
    """Write tables and plots of the finished cells, and return the paths of the written files."""
    comparisons = comparisons_of(experiment, results)
    counts = {"finished": len(results), "planned": planned}
    written = [folder.path / "results.md", folder.path / "results.json"]
    write_atomically(written[0], tables.markdown(comparisons, **counts))
    write_atomically(written[1], json.dumps(report.to_json(comparisons, **counts), indent=1))
    figures = {tables.DIFFERENCES_FILE: plots.differences(comparisons)}
    for comparison in comparisons:
        figures[comparison.figure_name("curves")] = plots.curves(comparison)
        figures[comparison.figure_name("bars")] = plots.bars(comparison)
    for name, figure in figures.items():
        if figure is not None:
            image = io.BytesIO()
            figure.savefig(image, dpi=150, format="png")
            write_atomically(folder.path / name, image.getvalue())
            written.append(folder.path / name)
    return written


def environment(processors: int) -> dict[str, str]:
    """Return the package versions, the Python version and the number of processors that a cell uses."""
    packages = {name: version(name) for name in ("fedmtl", "torch", "transformers", "numpy")}
    return packages | {"python": platform.python_version(), "processors": str(processors)}


def _whole_config(experiment: Experiment, cell: Cell) -> Config:
    """Return the configuration of the federation of all tasks and clients of a cell's setting."""
    values = run_values(experiment, cell, multi_task_federation(experiment, cell), Path("data"), Path("run"))
    return configuration.validated(values, f"cell {cell.id}")


def _mean(measured: Sequence[Mapping[_Key, float]]) -> dict[_Key, float]:
    return {key: statistics.fmean(one[key] for one in measured) for key in measured[0]}
