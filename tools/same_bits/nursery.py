"""A process that has imported what servers and clients need of others' packages, and forks them off itself.

The imports take some seconds of a processor, most of what so small a federation takes. FedMTL's own modules aren't
among them: each process imports those itself, of the revision that `PYTHONPATH` names.

It is run as a script. A line of JSON on standard input is a request, and the next line on standard output its answer;
see `tools.same_bits.processes`. With the end of its input it ends its processes, and itself.
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
    """In a new process: be what `python -m module` would be there, with its output in a file."""
    multiprocessing.current_process().name = "MainProcess"  # to transformers, others are a data loader's
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ.update(environment)
    setproctitle(shlex.join([sys.executable, "-m", module, *arguments]))  # what `ps` shows
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def answer(request: Mapping[str, Any], processes: list[ForkProcess]) -> Mapping[str, Any]:
    """Do what a request says.

    Args:
        request: `start`, what `become` takes; or the number of a process to `poll` or to `kill`.
        processes: all that were started, by number.
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
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever an import prints is no answer
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
