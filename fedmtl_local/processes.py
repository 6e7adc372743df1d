"""Starts, watches and stops the processes of a local federation."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from fedmtl_core.logs import LEVELS, LogLevel, level_of

TAIL_LINES = 12


class Child(Protocol):
    """A started process, with the part of the interface of `subprocess.Popen` that this module uses."""

    @property
    def pid(self) -> int: ...
    @property
    def stderr(self) -> IO[str] | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


Start = Callable[[str, Sequence[str], Mapping[str, str]], Child]
"""A function that starts a Python module with a command line and with variables added to this process's environment."""


def start_module(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Run a module like `python -m`, in its own session, so that Ctrl-C reaches only this process."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        start_new_session=True,
    )


def num_processors() -> int:
    """Return the number of CPUs that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Program:
    """A Python module to run like `python -m`."""

    module: str
    arguments: Sequence[str] = ()
    """The command line."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables to add to this process's environment."""


class LoggedProcess:
    """A program that runs as its own process and logs to a file.

    Args:
        name: the process's name in messages.
        program: the program to run.
        log_path: the file that the log is appended to.
        on_line: called with `name` and each log line at `log_level` or above.
        log_level: the lowest level of the lines passed to `on_line`.
        milestone: the text whose first appearance in the log sets `has_reached`.
        start: starts the process.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        log_path: Path,
        on_line: Callable[[str, str], None],
        milestone: str = "",
        start: Start = start_module,
        log_level: LogLevel = "warning",
    ):
        self.name = name
        self.log_path = log_path
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._on_line = on_line
        self._shown = LEVELS[LEVELS.index(log_level) :]
        self._milestone = milestone
        self._has_reached = False
        self._process = start(program.module, program.arguments, program.environment)
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_reached(self) -> bool:
        """Whether the process has logged its milestone."""
        return self._has_reached

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._process.poll()

    @property
    def tail(self) -> Sequence[str]:
        """The last lines of the log."""
        return list(self._tail)

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the process to end; return its exit code, or None if it is still running after `timeout_s`."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(timeout=5)
        return code

    def terminate(self) -> None:
        """Ask the process to stop, with SIGTERM."""
        if self.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Stop the process with SIGKILL."""
        if self.returncode is None:
            self._process.kill()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self.log_path.open("a", encoding="utf-8") as log:  # keeps the log of an earlier process of the run
            for line in self._process.stderr:
                self._tail.append(line.rstrip())
                self._has_reached = self._has_reached or self._milestone in line
                self._pass_on(line, log)

    def _pass_on(self, line: str, log: IO[str]) -> None:
        """Write a line to the log and the console. Failures are noted: the process must not block on a full pipe."""
        try:
            log.write(line)
            log.flush()
            if level_of(line) in self._shown:
                self._on_line(self.name, line.rstrip())
        except (OSError, SystemExit) as error:
            self._tail.append(f"(can't write this log line to the file or the console: {error})")


def stop_all(processes: Sequence[LoggedProcess], patience_s: float = 10.0) -> None:
    """Ask every process to stop, and kill the processes still running after `patience_s`."""
    for process in processes:
        process.terminate()
    give_up = time.monotonic() + patience_s
    for process in processes:
        if process.wait(max(0.0, give_up - time.monotonic())) is None:
            process.kill()
            process.wait(patience_s)
