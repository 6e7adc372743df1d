"""Reads runs from their folders: configuration, metrics, reports and models.

This needs no running server. A run that is being served can be read as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, CorruptCheckpointError, NonFiniteError, StoreError, UserError
from fedmtl_core.json_types import JsonObject
from fedmtl_core.logs import get_logger
from fedmtl_core.model.scopes import FROZEN
from fedmtl_core.model.sharing import blocks_of
from fedmtl_core.wire.layout import Component
from fedmtl_server.model import MTLServerModel
from fedmtl_server.storage.checkpoint_folder import read_base
from fedmtl_server.storage.checkpoints import read_metadata, read_safetensors, require_digests
from fedmtl_server.storage.folders import read_run_id
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import (
    CONFIG_FILE,
    HISTORY_FILE,
    RESULTS_FILE,
    RUN_FILE,
    checkpoint_path,
    checkpoint_rounds,
)
from fedmtl_server.storage.runs import read_started_from
from fedmtl_server.storage.stored_reports import StoredReport

Which = int | Literal["best", "last"]
"""A round: its number, `last` for the newest, or `best` for the best value of a task's main metric."""


@dataclass(frozen=True)
class SavedRun:
    """A run in its folder, with the data from its history if there is one."""

    folder: Path
    run_id: str
    config: Config
    digests: Mapping[int, Mapping[str, str]] | None = None
    """The SHA-256 of each component in hexadecimal, by committed round and scope; None without a history."""
    metrics: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)
    """The metrics by task, by the round of the measured model, and by name."""
    contributors: Mapping[int, Mapping[str, str]] | None = None
    """The tasks of the clients whose updates counted, by round and client id; None without a history."""

    started_from: JsonObject | None = None
    """The run and the round that the run's model started from, and its heads; None if it didn't start from a run."""
    reports: Sequence[StoredReport] = ()
    """`RoundReport.to_dict()` of each round that has ended, in order; empty without a history."""

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint, in order."""
        stored = checkpoint_rounds(self.folder)
        return stored if self.digests is None else [round_ for round_ in stored if round_ in self.digests]


def open_run(folder: Path) -> SavedRun:
    """Open the run in a folder. The folder needs only `config.yaml`, `run.json` and a checkpoint.

    Raises:
        StoreError: the folder has no run, or the run can't be read.
    """
    if not (folder / RUN_FILE).is_file():
        raise StoreError(f"{folder} has no run: expected the file {RUN_FILE}; `fedmtl-server runs list` lists the runs")
    run_id = read_run_id(folder / RUN_FILE)
    try:
        config = configuration.load(folder / CONFIG_FILE)
    except ConfigError as error:
        raise StoreError(f"the run in {folder} can't be read: {error}") from None
    run = SavedRun(folder, run_id, config, started_from=read_started_from(folder))
    if config.store.url is None and not (folder / HISTORY_FILE).is_file():
        return _with_results(run)
    try:
        return _with_history(run)
    except StoreError as error:
        get_logger().warning("history.unreadable", run_dir=str(folder), reason=str(error))
        return _with_results(run)


def choose_round(run: SavedRun, which: Which, task: str | None, *, option: str = "--round: ") -> int:
    """Return the number of a round that has a checkpoint.

    Args:
        run: the run.
        which: the round.
        task: the task whose main metric determines the best round.
        option: the option or setting that names the round, for messages.

    Raises:
        UserError: the round has no checkpoint; the message names the rounds with checkpoints.
    """
    stored = run.rounds()
    if not stored:
        raise UserError(f"{option}{run.folder} has no checkpoint")
    round_ = stored[-1] if which == "last" else _best(run, task) if which == "best" else which
    if round_ not in stored:
        raise UserError(
            f"{option}{run.folder} has no checkpoint of round {round_}; it has checkpoints of rounds "
            f"{', '.join(map(str, stored))}"
        )
    return round_


def _best(run: SavedRun, task: str | None) -> int:
    """Return the first of the rounds whose model has the best value of a task's main metric."""
    if task is None:
        raise UserError("--round: `best` needs a task: name it with --task, or give the number of the round")
    metric = run.config.tasks[task].spec(task).main_metric
    values = {round_: one[metric] for round_, one in run.metrics.get(task, {}).items() if metric in one}
    measured = {round_: value for round_, value in values.items() if math.isfinite(value)}  # NaN is never the best
    if not measured:
        raise UserError(
            f"--round: {run.folder} has no measured or defined value of {task}'s metric {metric}; try --round last"
        )
    return max(sorted(measured), key=lambda round_: measured[round_])


def best_round(run: SavedRun, tasks: Sequence[str]) -> int:
    """Return the round whose model has the highest mean of some tasks' main metrics.

    Only rounds count that have a checkpoint and a value for each of these tasks. Of equal rounds, the first is taken.

    Raises:
        UserError: no round has a checkpoint and all values.
    """
    metrics = {task: run.config.tasks[task].spec(task).main_metric for task in tasks}
    means = {}
    for round_ in run.rounds():
        values = [run.metrics.get(task, {}).get(round_, {}).get(metric, math.nan) for task, metric in metrics.items()]
        if all(map(math.isfinite, values)):
            means[round_] = sum(values) / len(values)
    if not means:
        raise UserError(f"{run.folder} has no checkpoint with measured values of all of {', '.join(tasks)}; try @last")
    return max(means, key=lambda round_: means[round_])


def load_model(run: SavedRun, round_: int, *, option: str = "--round: ") -> MTLServerModel:
    """Load the model after a round. If the run has a history, the digests are checked.

    Args:
        run: the run.
        round_: a round with a checkpoint.
        option: the option or setting that names the round, for messages.

    Raises:
        StoreError: the checkpoint can't be read, or differs from what was written.
        UserError: a parameter is NaN or infinite.
        ModelUnavailableError: the encoder's architecture can't be loaded.
    """
    model = MTLServerModel.from_config(run.config, weights=False)
    path = checkpoint_path(run.folder, round_)
    try:
        metadata = {"run_id": run.run_id, "round": str(round_)}
        if (sharing := read_metadata(path).get("sharing")) is not None:
            metadata["sharing"] = sharing
        moved = {part: blocks_of(blocks) for part, blocks in json.loads(sharing or "{}").items()}
        parts = model.parts.moved(moved)
        components = read_safetensors(path, parts.checkpoint_layouts(), metadata)
    except (ValueError, AttributeError, KeyError) as error:
        raise CorruptCheckpointError(f"{path}: the metadata about regrouped layers can't be read: {error}") from None
    except OSError as error:
        raise StoreError(f"can't read {path}: {error.strerror or error}") from None
    if run.digests is not None:
        require_digests(path, components, run.digests[round_])
    _require_finite(run, round_, components, option)
    model.rearrange(parts.table, components)
    if FROZEN in model.base:
        digests = None if run.digests is None else run.digests[0]
        read_base(run.folder, run.run_id, model.base[FROZEN], digests)
    return model


def _require_finite(run: SavedRun, round_: int, components: Mapping[str, Component], option: str) -> None:
    """Check that all parameters of a round's model are finite.

    Raises:
        UserError: a tensor has NaN or infinite values; the message names it.
    """
    try:
        for component in components.values():
            component.require_finite()
    except NonFiniteError as error:
        raise UserError(
            f"{option}the model of round {round_} in {run.folder} is damaged: {error}; choose an earlier round"
        ) from None


def _with_history(run: SavedRun) -> SavedRun:
    """Add the digests, metrics, contributors and reports from the run's history."""
    with closing(History.open(run.config.store.url or run.folder / HISTORY_FILE, create=False)) as history:
        rounds = history.rounds(run.run_id)
        metrics, updates = history.metrics(run.run_id), history.updates(run.run_id)
    contributors: dict[int, dict[str, str]] = {}
    for update in updates:
        if update.outcome == "counted" and update.kind != "metrics":
            contributors.setdefault(update.round, {})[update.client_id] = update.task
    measured: dict[str, dict[int, dict[str, float]]] = {}
    for one in metrics:
        measured.setdefault(one.task, {}).setdefault(one.round, {})[one.name] = one.value
    digests = {one.round: one.checkpoint for one in rounds if one.outcome == "committed" and one.checkpoint is not None}
    reports = [one.report for one in rounds if one.has_ended and one.report is not None]
    return replace(run, digests=digests, metrics=measured, contributors=contributors, reports=reports)


def _with_results(run: SavedRun) -> SavedRun:
    """Add the metrics from the run's `results.json`, if it exists."""
    try:
        results = json.loads((run.folder / RESULTS_FILE).read_text(encoding="utf-8"))
        metrics = {
            task: {int(round_): {one["metric"]: float(value)} for round_, value in one["by_round"].items()}
            for task, one in results.items()
        }
    except FileNotFoundError:
        return run
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"the run in {run.folder} can't be read: {RESULTS_FILE}: {error}") from None
    return replace(run, metrics=metrics)
