"""Runs in their folders, for programs that read them: configuration, metrics, reports and models.

No server needs to run, and a run that is served can be read too.
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
from fedmtl_core.logs import get_logger
from fedmtl_core.model.sharing import blocks_of
from fedmtl_core.wire.layout import Component
from fedmtl_server.model import MTLServerModel
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
from fedmtl_server.storage.stored_reports import StoredReport

Which = int | Literal["best", "last"]
"""A round: its number, the newest, or the one with the best value of a task's main metric."""


@dataclass(frozen=True)
class SavedRun:
    """A run in its folder, with what its history knows of it, if it has one."""

    folder: Path
    run_id: str
    config: Config
    digests: Mapping[int, Mapping[str, str]] | None = None
    """By committed round, the SHA-256 of each component in hexadecimal by scope; None without a history."""
    metrics: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)
    """By task, by the round of the model that was measured, the value of each metric by name."""
    contributors: Mapping[int, Mapping[str, str]] | None = None
    """By round, the task by client id of the clients whose updates counted; None without a history."""

    reports: Sequence[StoredReport] = ()
    """`RoundReport.to_dict()` of each round that has ended, in order; empty without a history."""

    def rounds(self) -> list[int]:
        """The rounds whose model is there, in order."""
        there = checkpoint_rounds(self.folder)
        return there if self.digests is None else [round_ for round_ in there if round_ in self.digests]


def open_run(folder: Path) -> SavedRun:
    """The run in a folder. `config.yaml`, `run.json` and a checkpoint are enough.

    Raises:
        StoreError: the folder holds no run, or none that can be read.
    """
    if not (folder / RUN_FILE).is_file():
        raise StoreError(f"{folder} holds no run; see `fedmtl-server runs list`")
    run_id = read_run_id(folder / RUN_FILE)
    try:
        config = configuration.load(folder / CONFIG_FILE)
    except ConfigError as error:
        raise StoreError(f"{folder} holds a run that can't be read: {error}") from None
    run = SavedRun(folder, run_id, config)
    if config.store.url is None and not (folder / HISTORY_FILE).is_file():
        return _with_results(run)
    try:
        return _with_history(run)
    except StoreError as error:
        get_logger().warning("history.unreadable", run_dir=str(folder), reason=str(error))
        return _with_results(run)


def choose_round(run: SavedRun, which: Which, task: str | None) -> int:
    """The number of a round whose model is there.

    Args:
        run: the run.
        which: the round.
        task: the task whose metric decides which round is the best.

    Raises:
        UserError: there is no such model; the message names the rounds that there are.
    """
    there = run.rounds()
    if not there:
        raise UserError(f"--round: {run.folder} holds no checkpoint")
    round_ = there[-1] if which == "last" else _best(run, task) if which == "best" else which
    if round_ not in there:
        raise UserError(
            f"--round: {run.folder} has no checkpoint of round {round_}; there are {', '.join(map(str, there))}"
        )
    return round_


def _best(run: SavedRun, task: str | None) -> int:
    """The first of the rounds whose model has the best value of a task's main metric."""
    if task is None:
        raise UserError("--round: `best` is one task's best: name it with --task, or give the round's number")
    metric = run.config.tasks[task].spec(task).main_metric
    values = {round_: one[metric] for round_, one in run.metrics.get(task, {}).items() if metric in one}
    measured = {round_: value for round_, value in values.items() if math.isfinite(value)}  # NaN is no round's best
    if not measured:
        raise UserError(
            f"--round: nobody has measured {task}'s {metric} in {run.folder}, or it is undefined; try --round last"
        )
    return max(sorted(measured), key=lambda round_: measured[round_])


def load_model(run: SavedRun, round_: int) -> MTLServerModel:
    """The model after a round, with its digests checked where there is a history.

    Raises:
        StoreError: its checkpoint can't be read, or isn't what was written.
        UserError: a parameter is NaN or infinite.
        ModelUnavailableError: the encoder's architecture can't be had.
    """
    model = MTLServerModel.from_config(run.config, weights=False)
    path = checkpoint_path(run.folder, round_)
    try:
        metadata = {"run_id": run.run_id, "round": str(round_)}
        if (sharing := read_metadata(path).get("sharing")) is not None:
            metadata["sharing"] = sharing
        moved = {part: blocks_of(blocks) for part, blocks in json.loads(sharing or "{}").items()}
        parts = model.parts.moved(moved)
        components = read_safetensors(path, parts.layouts(), metadata)
    except (ValueError, AttributeError, KeyError) as error:
        raise CorruptCheckpointError(f"{path}: what it says of moved layers can't be read: {error}") from None
    except OSError as error:
        raise StoreError(f"can't read {path}: {error.strerror or error}") from None
    if run.digests is not None:
        require_digests(path, components, run.digests[round_])
    _require_finite(run, round_, components)
    model.rearrange(parts.table, components)
    return model


def _require_finite(run: SavedRun, round_: int, components: Mapping[str, Component]) -> None:
    """Check that all parameters of a round's model are finite.

    Raises:
        UserError: a tensor, which the message names, has NaN or infinite values.
    """
    try:
        for component in components.values():
            component.require_finite()
    except NonFiniteError as error:
        raise UserError(
            f"--round: the model of round {round_} in {run.folder} is damaged: {error}; export an earlier round"
        ) from None


def _with_history(run: SavedRun) -> SavedRun:
    """A run with the digests, metrics, contributors and reports in its history."""
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
    """A run with the metrics in its `results.json`, where there is no history."""
    try:
        results = json.loads((run.folder / RESULTS_FILE).read_text(encoding="utf-8"))
        metrics = {
            task: {int(round_): {one["metric"]: float(value)} for round_, value in one["by_round"].items()}
            for task, one in results.items()
        }
    except FileNotFoundError:
        return run
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{run.folder} holds a run that can't be read: results.json: {error}") from None
    return replace(run, metrics=metrics)
