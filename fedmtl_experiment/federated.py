"""Run one federation of a cell, a real server and its clients as processes, and evaluate its models."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from safetensors.torch import load_file

from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import FedMTLError
from fedmtl_experiment.evaluation import UNDEFINED, Evaluator
from fedmtl_local.forked import ForkedProcess
from fedmtl_local.launcher import LocalRun
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


def run_federation(
    values: Mapping[str, object], run_dir: Path, on_round: Callable[[int], None] = lambda done: None
) -> FederatedRun:
    """Run a federation until it finishes.

    Args:
        values: the configuration.
        run_dir: the folder of the run. The configuration `….yaml` and the launcher's log `….log` are written beside.
        on_round: called with the number of finished rounds.

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
        LocalRun(config, path, [], run_dir, console=console, on_round=on_round, start=ForkedProcess).complete()
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
    )


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
    run: FederatedRun, evaluator: Evaluator
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return each evaluated task's metrics, of the final model and of the model of the task's best round.

    If clients keep parameters for themselves, the metrics are means over the clients' own models. Only the last round's
    local parameters exist, so that its metrics also stand for the best round.
    """
    kept = open_run(run.folder)
    last = run.config.training.num_rounds
    best_rounds = {task: round_ for task, round_ in run.best_rounds.items() if task in evaluator.tasks}
    measured: dict[tuple[str, int], dict[str, float]] = {}
    for round_ in sorted({last, *best_rounds.values()}):
        model = load_model(kept, round_)
        for task, best in best_rounds.items():
            if model.sharing.local_for(task):
                if round_ == last:
                    measured[task, last] = measured[task, best] = _mean_of_clients(run, model, task, evaluator)
            elif round_ in (last, best):
                measured[task, round_] = evaluator.evaluate(model.module_for(task), task)
    return (
        {task: measured[task, last] for task in best_rounds},
        {task: measured[task, best] for task, best in best_rounds.items()},
    )


def parameters_of(run: FederatedRun) -> tuple[int, int]:
    """Return the parameters of one encoder, and those that the server held after the last round.

    Layers may have been regrouped since the first round.
    """
    model = load_model(open_run(run.folder), run.config.training.num_rounds)
    return model.parts.encoder_elements(), sum(model.summary().scope_parameters.values())


def _mean_of_clients(run: FederatedRun, model: MTLServerModel, task: str, evaluator: Evaluator) -> dict[str, float]:
    """Return the mean of the metrics of a task's clients, each evaluated with its local parameters."""
    measured = []
    for client in run.config.clients:
        if task in client.task_names:
            local = load_file(_state_dir(run.folder) / f"{client.client_id}.{task}.safetensors")
            measured.append(evaluator.evaluate(model.module_for(task, local), task))
    return {name: fmean(one[name] for one in measured) for name in measured[0]}


def _state_dir(run_dir: Path) -> Path:
    """Return the folder of the local parameters of a run's clients."""
    return run_dir.with_suffix(".state")
