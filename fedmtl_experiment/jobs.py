"""Compute cells side by side: processes share a folder of results, and lock each cell that they compute."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from fedmtl_core.errors import FedMTLError
from fedmtl_experiment.cells import Cell
from fedmtl_experiment.progress import ConsoleProgress
from fedmtl_experiment.results import Folder
from fedmtl_local.interrupts import uninterrupted

_POLL_S = 1.0
_PATIENCE_S = 60.0
"""The time that a process has to stop its server and clients, in seconds."""


def compute_all(
    cells: Iterable[Cell], folder: Folder, compute: Callable[[Cell], object], progress: ConsoleProgress
) -> None:
    """Compute cells until all have a result, here or in other processes.

    Cells that other processes compute are passed over. When no others remain, this waits for them, and takes over the
    cell of a process that ends without a result.

    Args:
        cells: the cells, in order.
        folder: the folder of the results.
        compute: computes and stores one cell.
        progress: receives progress.
    """
    remaining, has_told = list(cells), False
    while remaining:
        elsewhere = []
        for cell in remaining:
            with folder.claim(cell) as is_mine:
                if folder.is_finished(cell):
                    progress.found_finished()
                elif is_mine:
                    compute(cell)
                else:
                    elsewhere.append(cell)
        if elsewhere == remaining:
            if not has_told:
                progress.waiting_for(remaining)
            has_told = True
            time.sleep(_POLL_S)
        else:
            has_told = False
        remaining = elsewhere


def run_side_by_side(arguments: Sequence[str], jobs: int, say: Callable[[str], None]) -> None:
    """Run the program in several processes until all have ended.

    Args:
        arguments: the command line of each process.
        jobs: the number of processes.
        say: called with each line that a process writes.

    Raises:
        FedMTLError: a process failed; the message has what it wrote to standard error. The others are stopped.
    """
    processes: list[_Job] = []
    try:
        for _ in range(jobs):
            with uninterrupted():  # an interrupt here could leave a process that nothing stops
                processes.append(_Job(arguments, say))
        while any(job.returncode is None for job in processes):
            if failed := [job for job in processes if job.returncode not in (None, 0)]:
                raise FedMTLError(failed[0].errors())
            time.sleep(0.1)
        if failed := [job for job in processes if job.returncode]:
            raise FedMTLError(failed[0].errors())
    finally:
        for job in processes:
            job.terminate()
        for job in processes:
            job.wait()


class _Job:
    """One of the processes, in its own session, so that Ctrl-C reaches only the process that started it."""

    def __init__(self, arguments: Sequence[str], say: Callable[[str], None]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedmtl_experiment", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._errors: list[str] = []
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=_pass_on, args=(self._process.stdout, say), daemon=True),
            threading.Thread(target=_pass_on, args=(self._process.stderr, self._errors.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def errors(self) -> str:
        """Return what the process wrote to standard error before it ended."""
        for reader in self._readers:
            reader.join(timeout=5)
        text = "\n".join(self._errors).removeprefix("error: ")
        return text or f"a process that computes cells ended with exit code {self.returncode}"

    def terminate(self) -> None:
        if self.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pass_on(lines: Iterable[str], to: Callable[[str], None]) -> None:
    for line in lines:
        to(line.rstrip("\n"))
