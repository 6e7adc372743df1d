"""Results to test with, made up of given numbers; nothing was trained for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedmtl_experiment.cells import Cell
from fedmtl_experiment.config import Experiment, load
from fedmtl_experiment.results import CellResult, TaskOutcome

TOY: dict[str, Any] = {
    "results_dir": "results",
    "seeds": [1, 2],
    "common": {"training": {"num_rounds": 2, "local_epochs": 1, "learning_rate": 2e-3, "max_length": 48}},
    "tasks": {"sst2": {"data": {"builtin": "sst2"}}, "stsb": {"data": {"builtin": "stsb"}}},
    "encoders": {"toy": {"model.server_model": "builtin:toy"}},
    "settings": {
        "tiny": {
            "validation_rows": 60,
            "report_rows": 100,
            "tasks": {"sst2": {"train_rows": 100}, "stsb": {"train_rows": 70, "clients": 1}},
        }
    },
    "methods": {name: {"base": name} for name in ("local", "standard", "mtl", "central")},
}


def experiment(tmp_path: Path, **changes: Any) -> Experiment:
    return load(write(tmp_path, **changes))


def write(tmp_path: Path, **changes: Any) -> Path:
    """The toy experiment as a file, with sections replaced."""
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({**TOY, **changes}, sort_keys=False), encoding="utf-8")
    return path


def outcome(value: float, best: float | None = None, metric: str = "accuracy", **changes: Any) -> TaskOutcome:
    best = value if best is None else best
    values: dict[str, Any] = {
        "metric": metric,
        "report": {metric: value, "loss": 1.0},
        "report_at_best": {metric: best, "loss": 1.0},
        "best_rounds": [2],
        "by_round": {0: 0.5, 1: value, 2: value},
        "by_client": {},
        "steps": 8,
        "report_rows": 100,
        "trivial": 0.5,
    }
    return TaskOutcome(**{**values, **changes})


def result(method: str, seed: int, value: float, **changes: Any) -> CellResult:
    values: dict[str, Any] = {
        "cell": Cell("tiny", "toy", method, seed),
        "inputs": {"base": method},
        "tasks": {"sst2": outcome(value)},
        "encoder_parameters": 1000,
        "held_parameters": 1010,
        "bytes_up": 3_000_000,
        "bytes_down": 1_000_000,
        "seconds": 10.0,
        "environment": {"torch": "2"},
    }
    return CellResult(**{**values, **changes})
