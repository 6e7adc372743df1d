"""Store results: one file for each finished cell, so that an interrupted experiment can be resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fedmtl_core.errors import ConfigError, StoreError
from fedmtl_experiment.cells import Cell, differences
from fedmtl_experiment.timing import WallTime

FORMAT = 2
"""The version of the files' format; files of other versions are rejected.

It also increases when the same settings yield a different model."""


@dataclass(frozen=True)
class TaskOutcome:
    """One task's results in one cell; means over the clients if each client has its own model."""

    metric: str
    """The name of the main metric."""
    report: Mapping[str, float]
    """All metrics of the final model on the reported rows."""
    report_at_best: Mapping[str, float]
    """All metrics on the reported rows, of the model of the round that was best on the validation rows."""
    best_rounds: Sequence[int]
    """The round that was best on the validation rows, for each model."""
    by_round: Mapping[int, float]
    """The main metric on the validation rows by round; round 0 is before the first.

    With several clients, each evaluates on its share of the validation rows, and the server combines the results."""
    by_client: Mapping[str, float]
    """The main metric of each client's own final model; empty if clients have no models of their own."""
    steps: int
    """Optimizer steps of all clients of the task together."""
    report_rows: int
    trivial: float | None
    """The main metric of a trivial baseline; None for metrics without one."""
    held_back: Mapping[str, float] | None = None
    """All metrics of the final model on the held-back rows; None if the setting holds no rows back."""

    @property
    def value(self) -> float:
        """The main metric of the final model on the reported rows."""
        return self.report[self.metric]

    @property
    def value_at_best(self) -> float:
        """The main metric on the reported rows, of the model of the best round."""
        return self.report_at_best[self.metric]

    @property
    def held_back_value(self) -> float | None:
        """The main metric of the final model on the held-back rows; None if the setting holds no rows back."""
        return None if self.held_back is None else self.held_back[self.metric]


@dataclass(frozen=True)
class CellResult:
    """One finished cell."""

    cell: Cell
    inputs: Mapping[str, object]
    """The inputs that the cell was computed from; see `cells.inputs`."""
    tasks: Mapping[str, TaskOutcome]
    encoder_parameters: int
    """Parameters of one encoder."""
    held_parameters: int
    """Parameters of all models that servers hold; of the one model in centralized training."""
    bytes_up: int | None
    """Encoded bytes from clients to servers in all runs of the cell; None if clients exchange nothing."""
    bytes_down: int | None
    """Encoded bytes from servers to clients in all runs of the cell; None if clients exchange nothing."""
    seconds: float
    """Seconds from the start of the first process to the end of the last, without the evaluation on reported rows."""
    environment: Mapping[str, str]
    """Package versions and the number of processors that the cell used."""
    wall: WallTime | None = None
    """The parts of the cell's wall time; None in cells of older versions."""

    def to_json(self) -> str:
        """Return the result as JSON text, with the format's version."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> CellResult:
        """Parse the text that `to_json` returns.

        Raises:
            ValueError: the text is not a result, or has another format version.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError("it was written by another version of FedMTL")
            tasks = {
                task: TaskOutcome(**{**one, "by_round": {int(key): value for key, value in one["by_round"].items()}})
                for task, one in values["tasks"].items()
            }
            wall = values.get("wall") and WallTime(**values["wall"])
            return cls(**{**values, "cell": Cell(**values["cell"]), "tasks": tasks, "wall": wall})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a cell's result: {error!r}") from None


class Folder:
    """The folder of an experiment's results.

    ```
    cells/SETTING/ENCODER/METHOD-SEED.json   a finished cell
    locks/                                   locks of the cells in progress
    work/                                    rows and runs of the cells in progress
    results.md, results.json, *.png          the report on all finished cells
    ```

    Args:
        path: the folder; created by the first write.
    """

    def __init__(self, path: Path):
        self.path = path

    def finished(self, planned: Mapping[Cell, Mapping[str, object]]) -> dict[Cell, CellResult]:
        """Return the stored results of the planned cells.

        Args:
            planned: the inputs of each cell.

        Raises:
            ConfigError: a stored cell was computed from other inputs.
            StoreError: a stored cell can't be read.
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

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell has a stored result, whatever its inputs."""
        return self._path(cell).exists()

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Lock a cell in the context, so that no other process computes it.

        The operating system releases the lock when its process ends, however it ends.

        Yields:
            Whether the cell is locked now; False if another process has locked it.

        Raises:
            StoreError: the folder can't be written.
        """
        path = self.path / "locks" / _name(cell)
        lock = FileLock(path, blocking=False, is_singleton=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            yield False
            return
        except OSError as error:
            raise StoreError(f"{self.path} can't be written: {error.strerror or error}") from None
        try:
            yield True
        finally:
            lock.release()

    def save(self, result: CellResult) -> Path:
        """Store a cell's result atomically, and return the file's path."""
        path = self._path(result.cell)
        write_atomically(path, result.to_json())
        return path

    def begin_work(self, cell: Cell) -> Path:
        """Create an empty folder for a cell's rows and runs. What a killed process has left of the cell is removed."""
        path = self.work(cell)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def work(self, cell: Cell) -> Path:
        """Return the folder of a cell's rows and runs while the cell is computed."""
        return self.path / "work" / _name(cell)

    def remove_work(self, cell: Cell) -> None:
        """Remove a cell's rows and runs."""
        shutil.rmtree(self.work(cell), ignore_errors=True)

    def _path(self, cell: Cell) -> Path:
        return self.path / "cells" / cell.setting / cell.encoder / f"{cell.method}-{cell.seed}.json"

    def _read(self, path: Path) -> CellResult:
        try:
            return CellResult.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} can't be read: {error}; remove it to compute the cell again") from None


def _name(cell: Cell) -> str:
    """Return a file name for a cell. No two cells have the same: names of settings and methods have no `+`."""
    return cell.id.replace("/", "+")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: after a crash, it is complete or unchanged. Several processes may write it.

    Raises:
        StoreError: the file can't be written.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StoreError(f"{path} can't be written: {error.strerror or error}") from None
