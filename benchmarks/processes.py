"""Start processes to measure, and read their CPU time and memory from the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

START_S = 0.05
"""Seconds by which a command precedes its start, so that several processes start together."""


Answer = dict[str, Any]
"""The start and end of a command, in seconds of `time.monotonic()`, and the command's own values."""


class Worker:
    """A process that reads commands as JSON lines and answers each with one line.

    Args:
        module: module to run with `python -m`.
        arguments: arguments of the module.
        log: file for standard error; not redirected if None.
    """

    def __init__(self, module: str, *arguments: str, log: Path | None = None):
        self._name = " ".join((module, *arguments))
        self._log = log.open("ab") if log else None
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.hello: object = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_hello(self) -> object:
        """Wait for the process's first line, which says that it is ready, and return it."""
        self.hello = self._read()
        return self.hello

    def send(self, command: str, at: float = 0.0) -> None:
        """Send a command to start at the time `at` of `time.monotonic()`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, "at": at}) + "\n")
        self._process.stdin.flush()

    def result(self) -> Answer:
        """Return the answer to the last command."""
        answer: Answer = self._read()
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._log:
            self._log.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with exit code {self._process.wait()}")
        return json.loads(line)


def together(workers: Sequence[Worker], command: str) -> float:
    """Run a command in several processes at once; return the seconds from the common start to the last end."""
    at = time.monotonic() + START_S
    for worker in workers:
        worker.send(command, at)
    return max(float(worker.result()["ended"]) for worker in workers) - at


def serve_commands(commands: Mapping[str, Callable[[], Mapping[str, object] | None]]) -> None:
    """Run the commands from standard input until it ends; the counterpart of `Worker`."""
    for line in sys.stdin:
        command = json.loads(line)
        time.sleep(max(0.0, command["at"] - time.monotonic()))
        began = time.monotonic()
        answer = commands[command["do"]]() or {}
        print(json.dumps({"began": began, "ended": time.monotonic(), **answer}), flush=True)


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process, of all threads in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss(pid: int) -> int:
    """Return the peak resident memory of a process, in bytes."""
    return _memory(pid, "VmHWM")


def rss(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    return _memory(pid, "VmRSS")


def _memory(pid: int, what: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) * 1024


def loopback_bytes() -> int:
    """Return the bytes that have crossed the loopback interface, with headers."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise RuntimeError("there is no loopback interface")
