"""Starts servers and clients of one revision without import time, as processes that end together with their parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NURSERY = Path(__file__).with_name("nursery.py")
DETERMINISTIC = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
"""The environment of all processes: fixed order of sums, fixed hash seed, no downloads."""
TAIL_LINES = 15


class FederationError(Exception):
    """A federation failed or did not finish."""


class Nursery:
    """Starts modules of one revision.

    Args:
        revision: the folder with the revision's files.
    """

    def __init__(self, revision: Path):
        paths = os.pathsep.join(map(str, (revision, revision / "generated")))
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(NURSERY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **DETERMINISTIC, "PYTHONPATH": paths},
            cwd=revision,
            start_new_session=True,  # Ctrl-C reaches only this process; the nursery ends when its input ends
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes of the nursery. Later requests raise an error."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(60)

    def start(
        self, name: str, module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> Child:
        """Run a module like `python -m`.

        Args:
            name: the name of the process; its log is `NAME.log` in the folder.
            module: the module to run.
            arguments: the module's command line.
            folder: the working directory.
            environment: variables added to the nursery's environment.
        """
        log = folder / f"{name}.log"
        parts = {"module": module, "arguments": list(arguments), "environment": dict(environment)}
        started = self.ask({"start": {**parts, "folder": str(folder), "log": str(log)}})
        return Child(self, started["number"], started["pid"], name, log)

    def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a request and return the answer; see `tools.same_bits.nursery`.

        Raises:
            FederationError: the nursery has ended.
        """
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except (BrokenPipeError, ValueError):  # either end of the pipe is closed
                line = ""
        if not line:
            raise FederationError(f"{NURSERY.name} ended with exit code {self._process.wait(60)}")
        answer: Mapping[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Child:
    """A process started by a nursery."""

    nursery: Nursery
    number: int
    pid: int
    name: str
    log: Path

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while the process runs, -N if signal N ended it."""
        code: int | None = self.nursery.ask({"poll": self.number})["exit_code"]
        return code

    def kill(self) -> None:
        """Kill the process with SIGKILL, and wait for its end."""
        self.nursery.ask({"kill": self.number})

    def count(self, event: str) -> int:
        """Return how often the process has logged an event."""
        return self._log_text().count(f" {event} ")

    def tail(self) -> str:
        """Return the last lines of the process's log."""
        lines = self._log_text().splitlines()[-TAIL_LINES:]
        return "\n".join(
            [f"{self.name} (exit code {self.exit_code}), last lines of its log:", *(f"    {x}" for x in lines)]
        )

    def _log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
