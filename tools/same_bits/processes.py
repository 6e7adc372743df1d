"""Servers and clients of one revision as processes that start at once, and that end with whoever started them."""

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
"""Environment of all processes: sums in one order, hashes of one seed, nothing from elsewhere."""
TAIL_LINES = 15


class FederationError(Exception):
    """A federation didn't come to its end."""


class Nursery:
    """Starts the modules of one revision.

    Args:
        revision: folder with its files.
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
            start_new_session=True,  # Ctrl-C is for us, and its input ends with us
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all its processes; whoever still asks for one of them is told so."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(60)

    def start(
        self, name: str, module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> Child:
        """Run a module as `python -m` does.

        Args:
            name: of the process, and of its log, `NAME.log` in the folder.
            module: what to run.
            arguments: its command line.
            folder: in which it runs.
            environment: added to this process's own.
        """
        log = folder / f"{name}.log"
        parts = {"module": module, "arguments": list(arguments), "environment": dict(environment)}
        started = self.ask({"start": {**parts, "folder": str(folder), "log": str(log)}})
        return Child(self, started["number"], started["pid"], name, log)

    def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a request answered; see `tools.same_bits.nursery`.

        Raises:
            FederationError: nobody answers.
        """
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except (BrokenPipeError, ValueError):  # the other end is closed, or this one
                line = ""
        if not line:
            raise FederationError(f"{NURSERY.name} ended with exit code {self._process.wait(60)}")
        answer: Mapping[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Child:
    """A process of a nursery's."""

    nursery: Nursery
    number: int
    pid: int
    name: str
    log: Path

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N if signal N ended it."""
        code: int | None = self.nursery.ask({"poll": self.number})["exit_code"]
        return code

    def kill(self) -> None:
        """SIGKILL, and the end of it."""
        self.nursery.ask({"kill": self.number})

    def count(self, event: str) -> int:
        """How often it has logged an event."""
        return self._said().count(f" {event} ")

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self._said().splitlines()[-TAIL_LINES:]
        return "\n".join(
            [f"{self.name} (exit code {self.exit_code}), the end of its log:", *(f"    {x}" for x in lines)]
        )

    def _said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
