"""`python -m benchmarks.hostile`: measure how hostile clients affect the rounds of honest clients.

A server process with default limits, eight honest clients with rounds of 17.5 MB in each direction, and fifty hostile
clients in a separate process (`benchmarks/attackers.py`), on loopback. Rounds with and without hostile clients are
measured alternately.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.figures import Figure
from benchmarks.figures import show as show_figures
from benchmarks.processes import Worker, cpu_seconds, rss
from benchmarks.scale import Measured
from benchmarks.scale import show as show_measured
from benchmarks.served import SMALL, Served
from benchmarks.swarm import raise_file_limit

TASKS = ("sst2", "qqp", "stsb")
SETTLE_S = 4.0
"""Seconds between the start or the end of the attacks and the first measured round."""
SAMPLE_S = 0.02
WARM_UP_ROUNDS = 5

console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


class Memory:
    """Records the peak resident memory of a process while it is watched, in bytes.

    Args:
        pid: id of the process.
    """

    def __init__(self, pid: int):
        self._pid = pid
        self.peak = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sample the process's memory inside the context."""
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(SAMPLE_S):
                self.peak = max(self.peak, rss(self._pid))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


class HostileBenchmark:
    """The benchmark of rounds with and without hostile clients.

    Args:
        folder: folder for temporary files.
        pairs: number of measurements with and without hostile clients.
        rounds: number of rounds in a measurement.
        num_hostile: number of hostile clients.
    """

    def __init__(self, folder: Path, pairs: int, rounds: int, num_hostile: int):
        self._pairs = pairs
        self._rounds = rounds
        self._num_hostile = num_hostile
        self._served = Served(folder / "served", SMALL, [TASKS[i % len(TASKS)] for i in range(8)])
        self._done: Counter[str] = Counter()
        self._cpu_s = {"with": 0.0, "without": 0.0}
        self.figures: list[Figure] = []
        self.measured: list[Measured] = []

    def run(self) -> None:
        """Measure all figures."""
        try:
            self._attackers = Worker("benchmarks.attackers", self._served.address, str(self._num_hostile))
            try:
                self._attackers.await_hello()
                self._measure()
            finally:
                self._attackers.stop()
        finally:
            self._served.stop()

    def _measure(self) -> None:
        before, during = Memory(self._served.pid), Memory(self._served.pid)
        with before.watched():
            for _ in range(WARM_UP_ROUNDS + self._rounds):
                self._served.time_round()
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        for pair in range(self._pairs):
            console.print(f"{time.strftime('%H:%M:%S')} {pair + 1} of {self._pairs}")
            seconds["without"].append(self._median_round("without"))
            with during.watched(), self._attacked():
                seconds["with"].append(self._median_round("with"))
        self._add_figures(seconds, (during.peak - before.peak) / 1e6)

    def _median_round(self, which: str) -> float:
        """Return the median of the seconds of several rounds."""
        time.sleep(SETTLE_S)
        cpu_s = cpu_seconds(self._served.pid)
        taken = [self._served.time_round() for _ in range(self._rounds)]
        self._cpu_s[which] += cpu_seconds(self._served.pid) - cpu_s
        return statistics.median(taken)

    @contextmanager
    def _attacked(self) -> Iterator[None]:
        self._attackers.send("begin")
        self._attackers.result()
        try:
            yield
        finally:
            self._attackers.send("end")
            self._done.update(self._attackers.result()["done"])

    def _add_figures(self, seconds: dict[str, list[float]], more_mb: float) -> None:
        name = f"round, 8 clients x 17.5 MB, with {self._num_hostile} hostile clients, against without"
        self.figures.append(Figure.of_pairs(name, "s", seconds["with"], seconds["without"], 1.5, at_most=True))
        self._add("server's peak RSS with hostile clients, minus without", "MB", more_mb, 200)
        for which, cpu_s in self._cpu_s.items():
            self._add(f"server's CPU for a round {which} hostile clients", "s", cpu_s / (self._pairs * self._rounds))
        for what, times in sorted(self._done.items()):
            self._add(what, "", times)
        for figure in self.figures:
            print(figure.to_json(), flush=True)
        for one in self.measured:
            print(one.to_json(), flush=True)

    def _add(self, name: str, unit: str, value: float, target: float | None = None) -> None:
        self.measured.append(Measured(name, unit, value, target))


def missed(figures: Sequence[Figure | Measured]) -> bool:
    """Whether any figure misses its target."""
    return any(one.met is False for one in figures)


def main(
    pairs: Annotated[int, typer.Option(help="Number of measurements with and without hostile clients.")] = 5,
    rounds: Annotated[int, typer.Option(help="Number of rounds in a measurement.")] = 9,
    hostile: Annotated[int, typer.Option(help="Number of hostile clients.")] = 50,
) -> None:
    """Measure how hostile clients affect the rounds of honest clients.

    One JSON line for each figure goes to standard output; progress and tables go to standard error. The exit code is 1
    if a target is missed.
    """
    raise_file_limit()  # the server inherits the limit
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=runs) as folder:
        bench = HostileBenchmark(Path(folder), pairs, rounds, hostile)
        bench.run()
        show_figures(bench.figures, console)
        show_measured(bench.measured)
    if missed([*bench.figures, *bench.measured]):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
