"""What was measured: one file for each finished cell, by which an experiment goes on where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedmtl_core.errors import ConfigError, StoreError
from fedmtl_experiment.cells import Cell, differences

FORMAT = 2
"""Of the files; another is refused. It goes up, too, where the same settings come to another model."""


@dataclass(frozen=True)
class TaskOutcome:
    """One task in one cell. Where each client has a model of its own, numbers are means over the clients."""

    metric: str
    """Its main metric."""
    report: Mapping[str, float]
    """All its metrics, of the final model on the rows for reporting."""
    report_at_best: Mapping[str, float]
    """Likewise of the model of the round that was best on the rows for choosing."""
    best_rounds: Sequence[int]
    """That round, of each model."""
    by_round: Mapping[int, float]
    """The main metric on the rows for choosing; round 0 is before the first. With several clients, each has a share of
    these rows, and it is what the server makes of their evaluations."""
    by_client: Mapping[str, float]
    """The main metric of the final model, for each client that has its own. Empty otherwise."""
    steps: int
    """Optimiser steps of all its clients together."""
    report_rows: int
    trivial: float | None
    """What the metric comes to without reading a text."""

    @property
    def value(self) -> float:
        return self.report[self.metric]

    @property
    def value_at_best(self) -> float:
        return self.report_at_best[self.metric]


@dataclass(frozen=True)
class CellResult:
    """One finished cell."""

    cell: Cell
    inputs: Mapping[str, object]
    """`cells.inputs` of what was run."""
    tasks: Mapping[str, TaskOutcome]
    encoder_parameters: int
    held_parameters: int
    """Of all models together that servers hold: with data in one place, of the one model."""
    bytes_up: int | None
    """Encoded bytes, over all runs of the cell; None where nothing is exchanged between clients."""
    bytes_down: int | None
    seconds: float
    """From the start of the first process to the last one's end; without the reported evaluation."""
    environment: Mapping[str, str]
    """Versions, processors."""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> CellResult:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is anything else.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError("it was written by another version of FedMTL")
            tasks = {
                task: TaskOutcome(**{**one, "by_round": {int(key): value for key, value in one["by_round"].items()}})
                for task, one in values["tasks"].items()
            }
            return cls(**{**values, "cell": Cell(**values["cell"]), "tasks": tasks})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a cell's result: {error!r}") from None


class Folder:
    """An experiment's folder.

    ```
    cells/SETTING/ENCODER/METHOD-SEED.json   a finished cell
    work/                                    rows and runs of the cell in progress
    results.md, results.json, *.png          what the cells say together
    ```

    Args:
        path: the folder; made when something is written.
    """

    def __init__(self, path: Path):
        self.path = path

    def finished(self, planned: Mapping[Cell, Mapping[str, object]]) -> dict[Cell, CellResult]:
        """The results of the planned cells that are there.

        Args:
            planned: cells with their inputs.

        Raises:
            ConfigError: a cell was computed from other inputs.
            StoreError: a file can't be read.
        """
        found = {}
        for cell, wanted in planned.items():
            path = self._path(cell)
            if not path.exists():
                continue
            result = self._read(path)
            if problems := differences(result.inputs, json.loads(json.dumps(dict(wanted)))):
                raise ConfigError(
                    f"{path} was computed with another configuration ({'; '.join(problems[:5])}): choose another "
                    "folder with --results, or remove the file to compute it again"
                )
            found[cell] = result
        return found

    def save(self, result: CellResult) -> Path:
        """Keep a cell's result: whole or not at all, whatever happens meanwhile."""
        path = self._path(result.cell)
        write_whole(path, result.to_json())
        return path

    def begin_work(self, cell: Cell) -> Path:
        """An empty folder for a cell's rows and runs."""
        path = self.work(cell)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def work(self, cell: Cell) -> Path:
        """Where a cell's rows and runs are while it is computed."""
        return self.path / "work" / cell.id.replace("/", "-")

    def end_work(self, cell: Cell) -> None:
        """Remove a cell's rows and runs."""
        shutil.rmtree(self.work(cell), ignore_errors=True)

    def _path(self, cell: Cell) -> Path:
        return self.path / "cells" / cell.setting / cell.encoder / f"{cell.method}-{cell.seed}.json"

    def _read(self, path: Path) -> CellResult:
        try:
            return CellResult.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} can't be read: {error}; remove it to compute the cell again") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file such that it is there whole or not at all.

    Raises:
        StoreError: it can't be written.
    """
    beside = path.with_suffix(path.suffix + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror or error}") from None
