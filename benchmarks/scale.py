"""`python -m benchmarks.scale`: measure 1,000 connected clients, and 200 clients with a larger model.

A server process with default settings, and swarms of clients without training in a few processes, on loopback. The
benchmark checks that every update counts once, that no call fails, and that the server's memory is bounded.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from fedmtl.v1 import federation_pb2 as pb
from rich.console import Console
from rich.table import Table
from transformers import BertConfig

from benchmarks.processes import START_S, Answer, Worker, cpu_seconds, peak_rss
from benchmarks.served import SMALL, Served
from benchmarks.swarm import raise_file_limit

TASKS = ("sst2", "qqp", "stsb")
TINY = BertConfig(vocab_size=1800, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
"""An encoder with 1 MB of parameters."""
NUM_PROCESSES = 4
"""Number of processes that the clients share."""
TIMEOUT_S = 900.0
"""Seconds for all rounds of one crowd."""

console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


@dataclass(frozen=True)
class Measured:
    """An absolute figure, without a bound."""

    name: str
    unit: str
    value: float
    target: float | None = None
    """The largest allowed value; None if the figure is for information only."""

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.value <= self.target

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "value": float(f"{self.value:.5g}"), "met": self.met})


class Crowd(Served):
    """A server, and swarms of clients that participate in its first rounds.

    Args:
        folder: folder for temporary files.
        model: architecture of the encoder.
        num_clients: number of clients, assigned to three tasks in rotation.
        num_rounds: number of rounds.
    """

    def __init__(self, folder: Path, model: BertConfig, num_clients: int, num_rounds: int):
        self.num_clients = num_clients
        self.num_rounds = num_rounds
        self.answers: list[Answer] = []
        self.cpu_s = 0.0
        """CPU seconds of the server for all rounds, with the clients' connecting."""
        super().__init__(folder, model, [TASKS[i % len(TASKS)] for i in range(num_clients)])

    def run(self) -> None:
        """Run all rounds, until every client has left.

        Raises:
            TimeoutError: the rounds take longer than `TIMEOUT_S`.
        """
        before, at = cpu_seconds(self.pid), time.monotonic() + START_S
        for client in self.clients:
            client.send("rounds", at)
        reader = threading.Thread(target=lambda: self.answers.extend(one.result() for one in self.clients), daemon=True)
        reader.start()
        reader.join(TIMEOUT_S)
        if reader.is_alive():
            raise TimeoutError(f"{self.num_clients} clients took longer than {TIMEOUT_S:g} s for their rounds")
        self.cpu_s = cpu_seconds(self.pid) - before

    def durations(self, call: str) -> list[float]:
        """Return the seconds of every `get` or `push`, as measured by its client."""
        return [seconds for answer in self.answers for seconds in answer[call]]

    @property
    def errors(self) -> list[str]:
        return [error for answer in self.answers for error in answer["errors"]]

    def reports(self) -> list[pb.RoundReport]:
        return [self.await_report(round_ + 1) for round_ in range(self.num_rounds)]

    def _start_clients(self, folder: Path, tasks: Sequence[str], per_process: int) -> None:
        share = math.ceil(len(tasks) / NUM_PROCESSES)
        for first in range(0, len(tasks), share):
            names = ",".join(tasks[first : first + share])
            log = folder / f"swarm-{first}.log"
            self.clients.append(
                Worker("benchmarks.swarm", self._address, names, str(first), str(self.num_rounds), log=log)
            )
        for client in self.clients:
            client.await_hello()


def miscounted(reports: Sequence[pb.RoundReport], num_clients: int) -> int:
    """Return the number of updates that were not counted exactly once, in the encoder or in their head."""
    wrong = 0
    for report in reports:
        encoder, heads = report.components[0], report.components[1:]
        for times in (
            Counter(part.client_id for part in encoder.contributions),
            Counter(part.client_id for head in heads for part in head.contributions),
        ):
            wrong += sum(abs(count - 1) for count in times.values()) + abs(num_clients - len(times))
    return wrong


class Scale:
    """The benchmark of many clients.

    Args:
        folder: folder for temporary files.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.figures: list[Measured] = []

    def many(self, num_clients: int, num_rounds: int) -> None:
        """Measure many clients with a small model."""
        with self._crowd(TINY, num_clients, num_rounds) as crowd:
            peak = self._measure(crowd)
            self._add(f"{self._name(crowd)}: server's peak RSS", "MB", peak, 1500.0)

    def heavy(self, num_clients: int, num_rounds: int) -> None:
        """Measure a few hundred clients with a larger model, relative to eight clients."""
        peaks = []
        for number in (8, num_clients):
            with self._crowd(SMALL, number, num_rounds) as crowd:
                peaks.append(self._measure(crowd))
                name = self._name(crowd)
        self._add(f"{name}: server's peak RSS, against {peaks[0]:.0f} MB with 8", "MB", peaks[1], 1.1 * peaks[0])

    def _measure(self, crowd: Crowd) -> float:
        """Run a crowd's rounds, add their figures, and return the server's peak RSS in MB."""
        crowd.run()
        name, reports = self._name(crowd), crowd.reports()
        for error in crowd.errors[:5]:
            console.print(f"  {error}")
        self._add(f"{name}: updates not counted once", "", miscounted(reports, crowd.num_clients), 0)
        self._add(f"{name}: failed calls", "", len(crowd.errors), 0)
        seconds = sorted(report.duration_seconds for report in reports)
        self._add(f"{name}: a round, median of {len(seconds)}", "s", quantile(seconds, 0.5))
        for rpc, call in (("GetSlice", "get"), ("PushUpdate", "push")):
            for percent in (50, 99):
                self._add(f"{name}: {rpc}, p{percent}", "s", quantile(crowd.durations(call), percent / 100))
        self._add(f"{name}: server's CPU for a round", "s", crowd.cpu_s / crowd.num_rounds)
        return peak_rss(crowd.pid) / 1e6

    @staticmethod
    def _name(crowd: Crowd) -> str:
        return f"{crowd.num_clients:,} clients x {crowd.payload_bytes / 1e6:.3g} MB"

    def _add(self, name: str, unit: str, value: float, target: float | None = None) -> None:
        self.figures.append(Measured(name, unit, value, target))
        print(self.figures[-1].to_json(), flush=True)

    @contextmanager
    def _crowd(self, model: BertConfig, num_clients: int, num_rounds: int) -> Iterator[Crowd]:
        console.print(f"{time.strftime('%H:%M:%S')} {num_clients} clients, {num_rounds} rounds")
        crowd = Crowd(self._folder / f"crowd-{len(os.listdir(self._folder))}", model, num_clients, num_rounds)
        try:
            yield crowd
        finally:
            crowd.stop()


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is not below `share` of the values; NaN for no values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def show(figures: Sequence[Measured]) -> None:
    """Print the figures as a table."""
    table = Table(title="Absolute figures of FedMTL", title_justify="left")
    for heading in ("figure", "measured", "unit", "target", "met"):
        table.add_column(heading, justify="left" if heading in ("figure", "unit") else "right")
    for one in figures:
        table.add_row(
            one.name,
            f"{one.value:.4g}",
            one.unit,
            "" if one.target is None else f"≤ {one.target:.4g}",
            {None: "", True: "yes", False: "NO"}[one.met],
        )
    console.print(table)


def main(
    clients: Annotated[int, typer.Option(help="Number of clients with a model of 1 MB; 0 to skip.")] = 1000,
    rounds: Annotated[int, typer.Option(help="Number of rounds with the 1 MB model.")] = 5,
    heavy_clients: Annotated[int, typer.Option(help="Number of clients with a model of 17.5 MB; 0 to skip.")] = 200,
    heavy_rounds: Annotated[int, typer.Option(help="Number of rounds with the 17.5 MB model.")] = 3,
) -> None:
    """Measure a server with many connected clients that don't train.

    One JSON line for each figure goes to standard output; progress and a table go to standard error. The exit code is 1
    if a target is missed.
    """
    raise_file_limit()  # the server inherits the limit
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=runs) as folder:
        scale = Scale(Path(folder))
        if clients:
            scale.many(clients, rounds)
        if heavy_clients:
            scale.heavy(heavy_clients, heavy_rounds)
        show(scale.figures)
    if any(one.met is False for one in scale.figures):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
