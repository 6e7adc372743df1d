"""Processes that are measured, and what the kernel says of them."""

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
"""How far ahead of now several processes are told to begin, so that they begin together."""


Answer = dict[str, Any]
"""When a command began and ended, in seconds of `time.monotonic()`, and what it says besides."""


class Worker:
    """A process that takes commands as JSON lines and answers each with one.

    Args:
        module: what to run with `python -m`.
        arguments: its arguments.
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
        """What it says first, when it is ready."""
        self.hello = self._read()
        return self.hello

    def send(self, command: str, at: float = 0.0) -> None:
        """Have it do something, at a moment of `time.monotonic()`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, "at": at}) + "\n")
        self._process.stdin.flush()

    def result(self) -> Answer:
        """What came of the last command."""
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
    """Have several do the same at once; seconds from the first's beginning to the last's end."""
    at = time.monotonic() + START_S
    for worker in workers:
        worker.send(command, at)
    return max(float(worker.result()["ended"]) for worker in workers) - at


def serve_commands(commands: Mapping[str, Callable[[], Mapping[str, object] | None]]) -> None:
    """The other side of a `Worker`: carry out what standard input says, until it ends."""
    for line in sys.stdin:
        order = json.loads(line)
        time.sleep(max(0.0, order["at"] - time.monotonic()))
        began = time.monotonic()
        answer = commands[order["do"]]() or {}
        print(json.dumps({"began": began, "ended": time.monotonic(), **answer}), flush=True)


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used, by its threads in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss(pid: int) -> int:
    """The most memory a process has had resident, in bytes."""
    return _memory(pid, "VmHWM")


def rss(pid: int) -> int:
    """The memory a process has resident, in bytes."""
    return _memory(pid, "VmRSS")


def _memory(pid: int, what: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) * 1024


def loopback_bytes() -> int:
    """Bytes that have crossed the loopback interface, headers included."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise RuntimeError("there is no loopback interface")
