"""`python -m benchmarks`: compare FedMTL's transfers, aggregation and rounds with bare gRPC and PyTorch.

Server and clients are separate processes on loopback, without training. FedMTL and the bound are measured alternately,
since the bound itself varies from minute to minute.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from transformers import BertConfig

from benchmarks.bare import Variant
from benchmarks.figures import Figure, show
from benchmarks.processes import Worker, cpu_seconds, loopback_bytes, peak_rss, together
from benchmarks.served import LARGE, SMALL, Served

MIB = 2**20
TASKS = ("sst2", "qqp", "stsb")
VARIANTS = [
    Variant(server, client, int(mib * MIB))
    for server in ("sync", "aio")
    for client in ("sync", "aio")
    for mib in (1, 2, 3.9)
]
SELECTION_PASSES = 3
"""Number of measurements of each variant when the fastest is selected."""

console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


class Bound:
    """A bare gRPC server and its clients, each a separate process."""

    def __init__(self, variant: Variant, slice_bytes: int, num_clients: int):
        self.server, address = variant.start_server(slice_bytes)
        self.clients = variant.start_clients(address, slice_bytes, num_clients)

    def time(self, command: str) -> float:
        """Return the seconds that all clients together take for `down`, `up` or `round`."""
        return together(self.clients, command)

    def stop(self) -> None:
        for worker in (*self.clients, self.server):
            worker.stop()


class Bench:
    """All parts of the benchmark.

    Args:
        folder: folder for temporary files.
        pairs: number of measurements of each figure.
    """

    def __init__(self, folder: Path, pairs: int):
        self._folder = folder
        self._pairs = pairs
        self._fastest: dict[tuple[str, int, int, bool], Variant] = {}
        self.figures: list[Figure] = []

    def run(self, only: str = "") -> None:
        """Measure all parts, or those whose name contains `only`."""
        parts: dict[str, Callable[[], None]] = {
            "aggregation": self._aggregation,
            "one-small": lambda: self._one_client(SMALL, "17.5 MB", get_target=0.95),
            "one-large": lambda: self._one_client(LARGE, "438 MB", get_target=0.90),
            "synced": self._synced,
            "eight-small": self._eight_clients,
            "two-large": self._two_large,
            "memory": self._memory,
        }
        for name, part in parts.items():
            if only in name:
                console.print(f"{time.strftime('%H:%M:%S')} {name}")
                part()

    # The parts.

    def _aggregation(self) -> None:
        elements = 17_500_000 // 4
        for num_updates in (10, 50):
            worker = Worker("benchmarks.averaging", str(num_updates), str(elements))
            worker.await_hello()
            gigabytes = num_updates * elements * 4 / 1e9
            taken = self._alternately(
                ours=partial(_rate, gigabytes, partial(together, [worker], "ours")),
                bound=partial(_rate, gigabytes, partial(together, [worker], "bound")),
            )
            worker.stop()
            self._add(f"aggregation of {num_updates} updates, 17.5 MB", "GB/s", taken, 0.85)

    def _one_client(self, model: BertConfig, size: str, get_target: float) -> None:
        with self._served(model, ["sst2"]) as served:
            gigabytes = served.payload_bytes / 1e9
            with self._bounds("down", served.payload_bytes, 1) as bounds:
                taken = self._alternately(
                    ours=partial(_rate, gigabytes, partial(served.time, "get")),
                    **{kind: partial(_rate, gigabytes, partial(bare.time, "down")) for kind, bare in bounds.items()},
                )
            self._add(f"GetSlice, 1 client, {size}", "GB/s", taken, get_target)
            with self._bounds("up", served.payload_bytes, 1) as bounds:
                taken = self._alternately(
                    ours=partial(_rate, gigabytes, partial(_push, served)),
                    **{kind: partial(_rate, gigabytes, partial(bare.time, "up")) for kind, bare in bounds.items()},
                )
            self._add(f"PushUpdate and aggregation, 1 client, {size}", "GB/s", taken, 0.80)
            self._norms(model, size, served)

    def _norms(self, model: BertConfig, size: str, unmeasured: Served) -> None:
        """Measure pushes with an update's norms against pushes without."""
        with self._served(model, ["sst2"], {"robustness": {"norms": {"action": "report"}}}) as measured:
            gigabytes = measured.payload_bytes / 1e9
            measured.time("get")
            taken = self._alternately(
                ours=partial(_rate, gigabytes, partial(_push, measured)),
                bound=partial(_rate, gigabytes, partial(_push, unmeasured)),
            )
        self._add(f"PushUpdate and aggregation with norms, against without norms, {size}", "GB/s", taken, None)

    def _synced(self) -> None:
        with self._served(SMALL, ["sst2"], {"store": {"durability": "power"}}) as served:
            size = served.payload_bytes
            scratch, data = self._folder / "scratch", os.urandom(size)
            served.time("get")
            with self._bounds("up", size, 1) as bounds:
                taken = self._alternately(
                    ours=partial(_rate, size / 1e9, partial(_push, served)),
                    **{
                        kind: partial(_rate, size / 1e9, partial(_send_and_write, bare, scratch, data))
                        for kind, bare in bounds.items()
                    },
                )
            self._add("PushUpdate and aggregation, fsynced, 1 client, 17.5 MB", "GB/s", taken, 0.80)

    def _eight_clients(self) -> None:
        with self._served(SMALL, [TASKS[i % 3] for i in range(8)]) as served:
            gigabytes = 8 * served.payload_bytes / 1e9
            with self._bounds("down", served.payload_bytes, 8) as bounds:
                taken = self._alternately(
                    ours=partial(_rate, gigabytes, partial(served.time, "get")),
                    **{kind: partial(_rate, gigabytes, partial(bare.time, "down")) for kind, bare in bounds.items()},
                )
            self._add("GetSlice, 8 clients of 3 tasks, 17.5 MB", "GB/s", taken, 0.90)
            self._rounds(served, "round, 8 clients x 17.5 MB", limit_s=1.0)

    def _two_large(self) -> None:
        with self._served(LARGE, ["sst2", "qqp"]) as served:
            self._rounds(served, "round, 2 clients x 438 MB")
            taken = {"ours": [peak_rss(served.pid) / 1e6], "bound": [300 + 4 * served.payload_bytes / 1e6]}
            self._add("server's peak RSS, 2 clients x 438 MB", "MB", taken, 1.0, at_most=True)

    def _rounds(self, served: Served, name: str, limit_s: float | None = None) -> None:
        """Measure a round's time, the server's CPU time and the bytes on the wire."""
        num_clients, size = len(served.clients), served.payload_bytes
        cpu: dict[str, list[float]] = {}
        wire: list[float] = []

        def ours() -> float:
            served.await_round()
            before, crossed = cpu_seconds(served.pid), loopback_bytes()
            seconds = served.time_round()
            cpu.setdefault("ours", []).append(cpu_seconds(served.pid) - before)
            wire.append((loopback_bytes() - crossed) / 1e6)
            return seconds

        def bare_round(kind: str, bare: Bound) -> float:
            before = cpu_seconds(bare.server.pid)
            seconds = bare.time("round")
            cpu.setdefault(kind, []).append(cpu_seconds(bare.server.pid) - before)
            return seconds

        with self._bounds("round", size, num_clients) as bounds:
            taken = self._alternately(
                ours=ours, **{kind: partial(bare_round, kind, bare) for kind, bare in bounds.items()}
            )
        self._add(name, "s", taken, 1.5, at_most=True)
        if limit_s:
            limits = {"ours": taken["ours"], "bound": [limit_s] * self._pairs}
            self._add(f"{name}, absolute time", "s", limits, 1.0, at_most=True)
        used = {kind: seconds[-self._pairs :] for kind, seconds in cpu.items()}
        self._add(f"{name}, server's CPU", "s", used, 2.0, at_most=True)
        payload = {"ours": wire[-self._pairs :], "bound": [2 * num_clients * size / 1e6] * self._pairs}
        self._add(f"{name}, bytes on the wire", "MB", payload, 1.01, at_most=True)

    def _memory(self) -> None:
        peaks = {}
        for num_clients in (8, 64, 256):
            tasks = [TASKS[i % 3] for i in range(num_clients)]
            with self._served(SMALL, tasks, per_process=max(2, num_clients // 8)) as served:
                for _ in range(3):
                    served.time_round()
                peaks[num_clients] = peak_rss(served.pid) / 1e6
        for num_clients in (64, 256):
            taken = {"ours": [peaks[num_clients]], "bound": [peaks[8]]}
            name = f"server's peak RSS, {num_clients} clients x 17.5 MB, against 8"
            self._add(name, "MB", taken, 1.10, at_most=True)

    # Helpers of the parts.

    def _alternately(self, **measures: Callable[[], float]) -> dict[str, list[float]]:
        """Return `pairs` measurements of each, taken alternately after two warm-ups."""
        for measure in [*measures.values()] * 2:  # warm-up: the first calls are slow
            measure()
        taken: dict[str, list[float]] = {kind: [] for kind in measures}
        for _ in range(self._pairs):
            for kind, measure in measures.items():
                taken[kind].append(measure())
        return taken

    def _add(
        self, name: str, unit: str, taken: Mapping[str, Sequence[float]], target: float | None, *, at_most: bool = False
    ) -> None:
        figures = [Figure.of_pairs(name, unit, taken["ours"], taken["bound"], target, at_most=at_most)]
        if "tuned" in taken:
            title = f"{name}, bound with FedMTL's allocator settings"
            figures.append(Figure.of_pairs(title, unit, taken["ours"], taken["tuned"], None, at_most=at_most))
        for figure in figures:
            self.figures.append(figure)
            print(figure.to_json(), flush=True)

    @contextmanager
    def _bounds(self, command: str, slice_bytes: int, num_clients: int) -> Iterator[dict[str, Bound]]:
        """Yield the fastest bare streams for a command: with default allocator settings, and with FedMTL's."""
        bounds = {}
        try:
            for kind, tuned in (("bound", False), ("tuned", True)):
                variant = self._find_fastest(command, slice_bytes, num_clients, tuned)
                bounds[kind] = Bound(variant, slice_bytes, num_clients)
            yield bounds
        finally:
            for bound in bounds.values():
                bound.stop()

    def _find_fastest(self, command: str, slice_bytes: int, num_clients: int, tuned: bool) -> Variant:
        key = (command, slice_bytes, num_clients, tuned)
        if key not in self._fastest:
            seconds = {}
            for variant in (replace(one, tuned=tuned) for one in VARIANTS):
                bound = Bound(variant, slice_bytes, num_clients)
                bound.time(command)
                seconds[variant] = statistics.median([bound.time(command) for _ in range(SELECTION_PASSES)])
                bound.stop()
            self._fastest[key] = min(seconds, key=seconds.__getitem__)
            how = (
                f"{command}, {num_clients} x {slice_bytes / 1e6:.3g} MB{', FedMTL allocator settings' if tuned else ''}"
            )
            console.print(f"  fastest bare gRPC for {how}: {self._fastest[key]}")
        return self._fastest[key]

    @contextmanager
    def _served(
        self, model: BertConfig, tasks: list[str], settings: dict[str, object] | None = None, per_process: int = 1
    ) -> Iterator[Served]:
        served = Served(self._folder / f"served-{time.monotonic_ns()}", model, tasks, settings, per_process)
        try:
            yield served
        finally:
            served.stop()


def _rate(gigabytes: float, measure: Callable[[], float]) -> float:
    return gigabytes / measure()


def _push(served: Served) -> float:
    """Return the seconds until one update is acknowledged, plus those of its aggregation."""
    round_ = served.await_round()
    seconds = served.time("push")
    return seconds + served.await_report(round_).aggregation_seconds


def _send_and_write(bare: Bound, path: Path, data: bytes) -> float:
    """Return the seconds of a bare stream, plus those to write and sync as many bytes to a file."""
    seconds = bare.time("up")
    began = time.monotonic()
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    return seconds + time.monotonic() - began


def main(
    pairs: Annotated[int, typer.Option(help="Number of measurements of each figure.")] = 9,
    only: Annotated[str, typer.Option(help="Measure only the parts whose name contains this text.")] = "",
) -> None:
    """Compare FedMTL's transfers, aggregation and rounds with bare gRPC and PyTorch.

    One JSON line for each figure goes to standard output; progress and a table go to standard error.
    """
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=runs) as folder:  # on the disk of runs, not on a RAM disk
        bench = Bench(Path(folder), pairs)
        bench.run(only)
        show(bench.figures, console)


if __name__ == "__main__":
    typer.run(main)
