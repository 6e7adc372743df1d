"""Processes that start at once, for many runs in turn: forked off one that has imported PyTorch and the rest.

The imports of a server and its clients take some seconds of a processor each, half of a run where the model is small.
The caller's main module must be one that can be imported again, for this is the forkserver of Python's
`multiprocessing`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TextIO

from fedmtl_local.interrupts import STOPPING

_THREADS = "OMP_NUM_THREADS"


class ForkedProcess:
    """A Python module run as a process of its own, as `python -m` does, but without waiting for its imports.

    It has what `LoggedProcess` needs of a `subprocess.Popen`.

    Args:
        module: what to run.
        arguments: its command line.
        environment: added to this process's own.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fedmtl_local.preloaded"])
        reader, writer = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_run, args=(module, [*arguments], {**os.environ, **environment}, writer)
        )
        resource_tracker.ensure_running()  # it would unblock what is blocked here
        # Ctrl-C is for this process: the one that others are forked off inherits that it is deaf, and ends with it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        writer.close()
        self.stderr: TextIO = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
        reader.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Stop it."""
        self.send_signal(signal.SIGKILL)


def _run(module: str, arguments: list[str], environment: dict[str, str], stderr: Connection) -> None:
    """In the new process: become what `python -m module` would be."""
    import torch
    from setproctitle import setproctitle

    os.setsid()  # Ctrl-C reaches it through who started it, in order
    multiprocessing.current_process().name = "MainProcess"  # to transformers, others are a data loader's
    setproctitle(shlex.join([sys.executable, "-m", module, *arguments]))  # what `ps` shows
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    if _THREADS in environment:  # it was read when PyTorch was imported
        torch.set_num_threads(int(environment[_THREADS]))
    sys.argv[1:] = arguments
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
