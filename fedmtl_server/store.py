"""What survives: the run's folder, with its configuration, checkpoints, reports and results.

RUN_DIR/
  config.yaml              the configuration as used
  server.json              address, process id and run id of the server, while and after it serves
  checkpoints/             round-0003.safetensors and round-0003.json; the newest few
  rounds.jsonl             one round report per line
  metrics.jsonl            one line per task and model: {"round", "task", "metrics", "num_clients"}
  results.json, metrics.png    when the run is over
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import StoreError
from fedmtl_core.layout import Component
from fedmtl_server.checkpoints import write_safetensors
from fedmtl_server.report import RoundReport


class RunStore:
    """One run's folder.

    Raises:
        StoreError: from every method, when the folder can't be written.
    """

    def __init__(self, run_dir: Path, run_id: str, keep_checkpoints: int = 3):
        self.run_dir = run_dir
        self.run_id = run_id
        self._keep = keep_checkpoints
        self._checkpoints = run_dir / "checkpoints"
        with _writing(run_dir):
            self._checkpoints.mkdir(parents=True, exist_ok=True)

    @classmethod
    def create(cls, config: Config, run_id: str, run_dir: Path | None = None) -> RunStore:
        """Make a new run's folder, by default one named after the time within `server.runs_dir`.

        Raises:
            StoreError: the folder holds another run already, or can't be made.
        """
        if run_dir is None:
            run_dir = config.server.runs_dir / f"{datetime.now():%Y%m%d-%H%M%S}-{run_id[:8]}"
        if (run_dir / "config.yaml").exists():
            raise StoreError(f"{run_dir} holds another run already; choose an empty folder with --run-dir")
        store = cls(run_dir, run_id, config.server.keep_checkpoints)
        store._write("config.yaml", configuration.dump(config))
        return store

    def announce(self, address: str) -> None:
        """Write down where the server listens, for those who look for it."""
        self._write_json("server.json", {"run_id": self.run_id, "address": address, "pid": os.getpid()})

    def write_model(self, components: Mapping[str, Component], round_: int) -> None:
        """Put a model on disk, durably; it is of no account until `commit` says so.

        Args:
            components: the whole model by scope.
            round_: the round that made it.
        """
        path = self._checkpoint(round_)
        with _writing(path):
            scratch = path.with_suffix(".tmp")
            with scratch.open("wb", buffering=0) as file:
                write_safetensors(file, components.values(), {"run_id": self.run_id, "round": str(round_)})
            _replace(scratch, path)

    def commit(self, components: Mapping[str, tuple[int, bytes]], report: RoundReport) -> None:
        """Make the model that was written last the round's, before anyone is told of it.

        Args:
            components: bytes and digest by scope.
            report: of the round that made it.
        """
        facts = {
            "run_id": self.run_id,
            "round": report.round,
            "components": {
                scope: {"digest": digest.hex(), "num_bytes": num_bytes}
                for scope, (num_bytes, digest) in components.items()
            },
        }
        self._write_json(f"checkpoints/{self._checkpoint(report.round).stem}.json", facts)
        self.record(report)
        self._prune()

    def record(self, report: RoundReport) -> None:
        """Append a round's report, and the metrics of the model it began with."""
        self._append("rounds.jsonl", [report.to_dict()])
        self._append(
            "metrics.jsonl",
            [
                {
                    "round": report.round - 1,
                    "task": task.task,
                    "metrics": dict(task.received_metrics),
                    "num_clients": task.num_updates,
                }
                for task in report.tasks
                if task.received_metrics
            ],
        )

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write what the run came to."""
        self._write_json("results.json", results)

    def _checkpoint(self, round_: int) -> Path:
        return self._checkpoints / f"round-{round_:04}.safetensors"

    def _prune(self) -> None:
        with _writing(self._checkpoints):
            rounds = sorted(self._checkpoints.glob("round-*.safetensors"), key=lambda path: int(path.stem[6:]))
            for old in rounds[: -self._keep]:
                old.unlink()
                old.with_suffix(".json").unlink(missing_ok=True)

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.run_dir / name
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self._write(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        path = self.run_dir / name
        with _writing(path):
            scratch = path.with_suffix(".tmp")
            scratch.write_text(text, encoding="utf-8")
            _replace(scratch, path)


def _replace(scratch: Path, path: Path) -> None:
    """Rename a finished file into place, so that it is there whole or not at all, also after a power cut."""
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, as `fsync` has a file's bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror or error}") from error
