"""Processes that compute cells side by side, as if the command had been given several times."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from fedmtl_core.errors import FedMTLError
from fedmtl_local.interrupts import uninterrupted

_PATIENCE_S = 60.0
"""The time that a process has to stop its server and clients, in seconds."""


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
