"""Reads the output of a run as comparable values: digests of its files and reports of its rounds."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

IGNORED = {
    "opened_at_unix_ms": "a time",
    "duration_s": "a duration",
    "aggregation_s": "a duration",
    "update_id": "random",
    "reason": "text; the code is compared instead",
}
"""The keys that are ignored at any place, with the reasons."""

OF_A_KILLED_SERVER = ("bytes_received", "bytes_sent")
"""The report keys that are ignored if a server was killed: repeated transfers depend on the time of the kill."""

_ROUNDS = "SELECT round, purpose, outcome, cohort, report, checkpoint FROM rounds ORDER BY round"
_UPDATES = (
    "SELECT round, client_id, task, base_round, kind, num_examples, num_bytes, received_metrics, trained_metrics, "
    "outcome, code FROM updates ORDER BY round, client_id, base_round, outcome"
)
_METRICS = "SELECT round, task, name, value, num_clients FROM metrics ORDER BY round, task, name"


def read(folder: Path, *, killed: bool = False) -> dict[str, Any]:
    """Read the values to compare from a federation's folder: `files`, `rounds`, `updates`, `metrics`, `results`.

    Args:
        folder: the folder with the run folder `run` and the clients' state folders.
        killed: whether a server was killed in the run.
    """
    ignored = {*IGNORED, *(OF_A_KILLED_SERVER if killed else ())}
    run_dir = folder / "run"
    run_id = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["run_id"]
    files = sorted(folder.rglob("*.safetensors"))
    with closing(sqlite3.connect(f"file:{run_dir / 'history.sqlite'}?mode=ro", uri=True)) as history:
        rounds = {f"{row['round']}": row for row in _rows(history, _ROUNDS)}
        updates: dict[str, Any] = {}
        for row in _rows(history, _UPDATES):
            updates.setdefault(f"{row['round']}", []).append(row)
        metrics: dict[str, Any] = {}
        for row in _rows(history, _METRICS):
            metrics.setdefault(f"{row['round']}", {}).setdefault(row["task"], {})[row["name"]] = row
    return {
        "files": {str(path.relative_to(folder)): digest(path, run_id) for path in files},
        "rounds": _without(ignored, rounds),
        "updates": _without(ignored, updates),
        "metrics": metrics,
        "results": json.loads((run_dir / "results.json").read_text(encoding="utf-8")),
    }


def checkpoints(reading: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a run's checkpoints by file."""
    return {name: value for name, value in reading["files"].items() if name.startswith("run/")}


def digest(path: Path, run_id: str) -> str:
    """Return the SHA-256 of a safetensors file without the random parts: the metadata's order, and the run id in it."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = sorted(header.pop("__metadata__", {}).items())
    known = json.dumps([end, metadata, list(header.items())]).replace(run_id, "0" * len(run_id))
    return hashlib.sha256(known.encode() + content[end:]).hexdigest()


def digest_of(reading: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a whole reading."""
    return hashlib.sha256(json.dumps(reading, sort_keys=True).encode()).hexdigest()


def _rows(history: sqlite3.Connection, query: str) -> list[dict[str, Any]]:
    cursor = history.execute(query)
    names = [column[0] for column in cursor.description]
    return [{name: _value(cell) for name, cell in zip(names, row, strict=True)} for row in cursor]


def _value(cell: object) -> object:
    """Return a cell's value, parsed if it is a JSON object or array."""
    return json.loads(cell) if isinstance(cell, str) and cell[:1] in ("{", "[") else cell


def _without(ignored: Collection[str], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(ignored, inner) for key, inner in value.items() if key not in ignored}
    return [_without(ignored, inner) for inner in value] if isinstance(value, list) else value
