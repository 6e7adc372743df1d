"""Run one federation of a cell, a real server and its clients as processes, and evaluate its models."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from rich.console import Console
from safetensors.torch import load_file

from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import FedMTLError
from fedmtl_experiment.evaluation import UNDEFINED, Candidate, Evaluator
from fedmtl_experiment.timing import RoundTimes, round_times
from fedmtl_local.forked import ForkedProcess
from fedmtl_local.launcher import LocalRun
from fedmtl_local.processes import Start, num_processors
from fedmtl_server.model import MTLServerModel
from fedmtl_server.saved_runs import load_model, open_run
from fedmtl_server.storage.results import TaskResult
from fedmtl_server.storage.stored_reports import StoredReport


@dataclass(frozen=True)
class FederatedRun:
    """The results of a finished run."""

    config: Config
    folder: Path
    by_round: Mapping[str, Mapping[int, float]]
    """For each task, its main metric on its clients' evaluation rows by round; round 0 is before the first."""
    best_rounds: Mapping[str, int]
    """For each task, the round with the best main metric."""
    bytes_up: int
    """Encoded bytes from clients to the server."""
    bytes_down: int
    """Encoded bytes from the server to clients."""
    seconds: float
    """Duration of the run with the start of its processes."""
    rounds: RoundTimes = field(default_factory=RoundTimes)
    """The parts of the duration of its rounds."""

    @property
    def last_round(self) -> int:
        """The round of the final model: the last round of training, or the evaluation if it chose a variant."""
        return open_run(self.folder).rounds()[-1]


def run_federation(
    values: Mapping[str, object],
    run_dir: Path,
    on_round: Callable[[int], None] = lambda done: None,
    processors: int | None = None,
) -> FederatedRun:
    """Run a federation until it finishes.

    Args:
        values: the configuration.
        run_dir: the folder of the run. The configuration `….yaml` and the launcher's log `….log` are written beside.
        on_round: called with the number of finished rounds.
        processors: the number of CPUs that the processes share; all that this process may use if None.

    Raises:
        FedMTLError: a process failed, or a round went without one of its clients.
    """
    path = run_dir.with_suffix(".yaml")
    given = values.get("client")
    client = {**(given if isinstance(given, Mapping) else {}), "state_dir": str(_state_dir(run_dir))}
    config = configuration.Config.model_validate({**values, "client": client})
    path.write_text(configuration.dump(config), encoding="utf-8")
    began = time.monotonic()
    with run_dir.with_suffix(".log").open("w", encoding="utf-8") as log:
        console = Console(file=log, width=200)
        start = _start_with_threads(config, processors or num_processors())
        LocalRun(config, path, [], run_dir, console=console, on_round=on_round, start=start).complete()
    seconds = time.monotonic() - began
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    reports = open_run(run_dir).reports
    require_complete(reports, config)
    curves = {task: curve_of(TaskResult.from_dict(one)) for task, one in results.items()}
    return FederatedRun(
        config,
        run_dir,
        curves,
        {task: max(curve, key=lambda round_: curve[round_]) for task, curve in curves.items()},
        sum(report["bytes_received"] for report in reports),
        sum(report["bytes_sent"] for report in reports),
        seconds,
        round_times(reports, sorted((run_dir / "logs").glob("client-*.log"))),
    )


def _start_with_threads(config: Config, processors: int) -> Start:
    """Return a function that forks a process. The server has a thread per processor, and the clients share them."""

    def start(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> ForkedProcess:
        threads = processors if module == "fedmtl_server" else max(1, processors // len(config.clients))
        return ForkedProcess(module, arguments, {**environment, "OMP_NUM_THREADS": str(threads)})

    return start


def curve_of(result: TaskResult) -> dict[int, float]:
    """Return a task's main metric by round; `UNDEFINED` where the metric is undefined."""
    values = {**dict.fromkeys(result.measured, UNDEFINED), **result.by_round}
    return dict(sorted(values.items()))


def require_complete(reports: Sequence[StoredReport], config: Config) -> None:
    """Check that every round had all of its clients. Runs with missing clients are not comparable.

    Raises:
        FedMTLError: a client was missing in a round, an update was rejected, or rounds are missing.
    """
    if len(reports) != config.training.num_rounds + 1:
        raise FedMTLError(f"expected {config.training.num_rounds} rounds and an evaluation, got {len(reports)}")
    for report in reports:
        if report["failed"] or report["missing_clients"] or report["num_refused"]:
            raise FedMTLError(
                f"round {report['round']} went without all of its clients: missing "
                f"{', '.join(report['missing_clients']) or 'none'}, {report['num_refused']} updates refused"
            )


def evaluate_checkpoints(
    run: FederatedRun,
    evaluator: Evaluator,
    processors: int = 1,
    on_start: Callable[[Candidate], None] = lambda candidate: None,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return each evaluated task's metrics, of the final model and of the model of the task's best round.

    If clients keep parameters for themselves, the metrics are means over the clients' own models. Only the last round's
    local parameters exist, so that its metrics also stand for the best round.

    Args:
        run: the run.
        evaluator: evaluates on the reported rows.
        processors: the number of evaluations side by side.
        on_start: called before each evaluation.
    """
    last = run.last_round
    best_rounds = {task: round_ for task, round_ in run.best_rounds.items() if task in evaluator.tasks}
    measured: dict[tuple[str, int], list[dict[str, float]]] = {}
    all_measured = evaluator.evaluate_all(_candidates(run, best_rounds), processors, on_start)
    for (task, round_, _), metrics in all_measured.items():
        measured.setdefault((task, round_), []).append(metrics)
    final = {task: _mean(measured[task, last]) for task in best_rounds}
    at_best = {task: measured.get((task, best)) for task, best in best_rounds.items()}
    return final, {task: _mean(metrics) if metrics else final[task] for task, metrics in at_best.items()}


def evaluate_final(
    run: FederatedRun,
    evaluator: Evaluator,
    processors: int = 1,
    on_start: Callable[[Candidate], None] = lambda candidate: None,
) -> dict[str, dict[str, float]]:
    """Return each evaluated task's metrics, of the final model only; see `evaluate_checkpoints`."""
    if not evaluator.tasks:
        return {}
    last = dict.fromkeys(run.best_rounds, run.last_round)
    return evaluate_checkpoints(replace(run, best_rounds=last), evaluator, processors, on_start)[0]


def _candidates(run: FederatedRun, best_rounds: Mapping[str, int]) -> Iterator[Candidate]:
    """Yield the models to evaluate."""
    kept, last = open_run(run.folder), run.last_round
    for round_ in sorted({last, *best_rounds.values()}):
        model = load_model(kept, round_)
        for task, best in best_rounds.items():
            if model.sharing.local_for(task):
                if round_ == last:
                    yield from _candidates_of_clients(run, model, task)
            elif round_ in (last, best):
                yield Candidate(task, round_, model.module_for(task))


def _candidates_of_clients(run: FederatedRun, model: MTLServerModel, task: str) -> Iterator[Candidate]:
    """Yield the final model of each of a task's clients, with the client's local parameters."""
    clients = [client.client_id for client in run.config.clients if task in client.task_names]
    for client_id in clients:
        local = load_file(_state_dir(run.folder) / f"{client_id}.{task}.safetensors")
        yield Candidate(task, run.last_round, model.module_for(task, local), client_id)


def _mean(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(one[name] for one in measured) for name in measured[0]}


def parameters_of(run: FederatedRun) -> tuple[int, int]:
    """Return the parameters of one encoder, and those that the server held after the last round.

    Layers may have been regrouped since the first round. With adapters, both numbers include the base, which the server
    holds once for all tasks.
    """
    model = load_model(open_run(run.folder), run.last_round)
    base = sum(component.layout.num_elements for component in model.base.values())
    return base + model.parts.encoder_elements(), base + model.summary().total_parameters


def _state_dir(run_dir: Path) -> Path:
    """Return the folder of the local parameters of a run's clients."""
    return run_dir.with_suffix(".state")
