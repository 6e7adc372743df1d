"""`python -m benchmarks.encodings`: measure the bytes that each wire encoding saves, and its effect on metrics.

Every run is a complete demo in separate processes with real transfers. Finished runs are not repeated, so that an
interrupted comparison can be resumed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedmtl_core.wire.formats import ENCODINGS
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE

console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


@dataclass(frozen=True)
class Run:
    """The result of one demo run."""

    metrics: dict[str, float]
    """The main metric of the final model, by task."""
    bytes_up: int
    bytes_down: int

    @classmethod
    def read(cls, folder: Path) -> Run:
        results = json.loads((folder / "results.json").read_text())
        run_id = json.loads((folder / "run.json").read_text())["run_id"]
        with closing(History.open(folder / HISTORY_FILE, create=False)) as history:
            reports = [one.report for one in history.rounds(run_id) if one.report is not None]
        return cls(
            {task: result["last"] for task, result in results.items()},
            sum(report["bytes_received"] for report in reports),
            sum(report["bytes_sent"] for report in reports),
        )


def main(
    config: Annotated[Path, typer.Option(help="Configuration of the demo.")] = Path("configs/demo.yaml"),
    seeds: Annotated[int, typer.Option(help="Number of runs of each encoding, with seeds from 1.")] = 5,
    encoding: Annotated[
        list[str] | None, typer.Option(help="Encodings to compare with float32; all if not given.")
    ] = None,
    compression: Annotated[str, typer.Option(help="Compression of the wire: none or zstd.")] = "none",
    folder: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/encodings"),
) -> None:
    """Compare the wire encodings, in both directions, over complete runs.

    One JSON line for each encoding goes to standard output; progress and a table go to standard error.
    """
    wanted = ["float32", *(one for one in ENCODINGS[1:] if not encoding or one in encoding)]
    runs: dict[str, list[Run]] = {name: [] for name in wanted}
    for seed in range(1, seeds + 1):
        for name in wanted:
            run_dir = folder / f"{name}-{compression}-{seed}"
            if not (run_dir / "results.json").exists():
                console.print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}")
                _run(
                    config,
                    run_dir,
                    [f"training.seed={seed}", f"wire.upload={name}", f"wire.download={name}"],
                    compression,
                )
            runs[name].append(Run.read(run_dir))
    rows = [_row(name, mine, runs["float32"]) for name, mine in runs.items()]
    for row in rows:
        print(json.dumps(row))
    _show(rows)


def _run(config: Path, run_dir: Path, settings: Sequence[str], compression: str) -> None:
    options = [f"--set={setting}" for setting in (*settings, f"wire.compression={compression}")]
    command = [sys.executable, "-m", "fedmtl_local", f"--config={config}", f"--run-dir={run_dir}", *options]
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with run_dir.with_suffix(".log").open("wb") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)


def _row(name: str, runs: Sequence[Run], exact: Sequence[Run]) -> dict[str, object]:
    """Return an encoding's bytes relative to float32, and its metrics with their differences to float32's mean."""
    tasks = {}
    for task in runs[0].metrics:
        values = [run.metrics[task] for run in runs]
        mean = statistics.mean(values)
        tasks[task] = {
            "mean": round(mean, 4),
            "std": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
            "against_float32": round(mean - statistics.mean(run.metrics[task] for run in exact), 4),
        }
    return {
        "encoding": name,
        "seeds": len(runs),
        "bytes_up": round(statistics.mean(run.bytes_up for run in runs)),
        "bytes_down": round(statistics.mean(run.bytes_down for run in runs)),
        "ratio_up": round(sum(run.bytes_up for run in runs) / sum(run.bytes_up for run in exact), 4),
        "ratio_down": round(sum(run.bytes_down for run in runs) / sum(run.bytes_down for run in exact), 4),
        "tasks": tasks,
    }


def _show(rows: Sequence[dict[str, object]]) -> None:
    table = Table(
        title="Bytes of complete runs relative to float32, and metrics of the final model", title_justify="left"
    )
    table.add_column("encoding")
    for heading in ("bytes up", "ratio", "bytes down", "ratio"):
        table.add_column(heading, justify="right")
    tasks = rows[0]["tasks"]
    assert isinstance(tasks, dict)
    for task in tasks:
        table.add_column(f"{task}: mean ± std (difference)", justify="right")
    for row in rows:
        measured = row["tasks"]
        assert isinstance(measured, dict)
        cells = [f"{one['mean']:.3f} ± {one['std']:.3f} ({one['against_float32']:+.3f})" for one in measured.values()]
        table.add_row(
            str(row["encoding"]),
            f"{row['bytes_up']:,}",
            f"{row['ratio_up']:.3f}",
            f"{row['bytes_down']:,}",
            f"{row['ratio_down']:.3f}",
            *cells,
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
