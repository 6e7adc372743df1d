"""A process that imports the third-party packages of servers and clients, and forks servers and clients from itself.

The imports take several CPU seconds, which is most of the time of a small federation. Each forked process imports
FedMTL's own modules itself, from the revision that `PYTHONPATH` names.

This file runs as a script. Each line of JSON on standard input is a request, and the next line on standard output is
its answer; see `tools.same_bits.processes`. At the end of its input the script kills its processes and exits.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.context import ForkProcess
from typing import Any

from setproctitle import setproctitle

PRELOADED = (
    "alembic.autogenerate",
    "datasets",
    "grpc.aio",
    "pandas",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.metrics",
    "sqlalchemy",
    "torch",
    "transformers.modeling_utils",
    "transformers",
    "typer",
)


def become(module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: str, log: str) -> None:
    """Run a module in a new process as `python -m module` would, with its output in a file."""
    multiprocessing.current_process().name = "MainProcess"  # transformers takes other names for a data loader's worker
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ.update(environment)
    setproctitle(shlex.join([sys.executable, "-m", module, *arguments]))  # the name that `ps` shows
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def answer(request: Mapping[str, Any], processes: list[ForkProcess]) -> Mapping[str, Any]:
    """Carry out a request and return the answer.

    Args:
        request: `start` with the arguments of `become`, or `poll` or `kill` with the number of a process.
        processes: the started processes by number.
    """
    if "start" in request:
        process = multiprocessing.get_context("fork").Process(target=become, kwargs=request["start"])
        process.start()
        processes.append(process)
        return {"number": len(processes) - 1, "pid": process.pid}
    if "kill" in request:
        processes[request["kill"]].kill()
        processes[request["kill"]].join()
        return {}
    return {"exit_code": processes[request["poll"]].exitcode}


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of imports must not mix with the answers
    for name in PRELOADED:
        import_module(name)
    processes: list[ForkProcess] = []
    try:
        for line in iter(sys.stdin.readline, ""):
            print(json.dumps(answer(json.loads(line), processes)), file=answers)
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main()
