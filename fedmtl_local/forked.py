"""Starts processes without import time, for many runs in sequence: forks them off a process that has imported PyTorch.

The imports of a server or a client take several CPU seconds, which is half of a run with a small model. This uses the
forkserver of Python's `multiprocessing`, so the caller's main module must be importable a second time.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TextIO

from fedmtl_local.interrupts import STOPPING

_THREADS = "OMP_NUM_THREADS"


def preload() -> None:
    """Start the process that later processes are forked from, in the background. `ForkedProcess` does it if needed."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["fedmtl_local.preloaded"])
    resource_tracker.ensure_running()  # starting it later would unblock the signals that are blocked here
    with _signals_blocked():
        forkserver.ensure_running()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the signals that ask to stop. Only this process handles Ctrl-C; the forkserver, which ends with this
    process, inherits the blocked signals."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class ForkedProcess:
    """A Python module that runs as its own process, like `python -m`, but without waiting for its imports.

    The process is killed if the process that started it ends before it.

    The class has the part of the interface of `subprocess.Popen` that `LoggedProcess` needs.

    Args:
        module: the module to run.
        arguments: the module's command line.
        environment: variables added to this process's environment.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]):
        preload()
        context = multiprocessing.get_context("forkserver")
        reader, writer = context.Pipe(duplex=False)
        starter, self._held_open = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_run, args=(module, [*arguments], {**os.environ, **environment}, writer, starter)
        )
        with _signals_blocked():
            self._process.start()
        writer.close()
        starter.close()
        self.stderr: TextIO = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
        reader.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Wait for the process to end and return its exit code.

        Raises:
            subprocess.TimeoutExpired: the process is still running after `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send the process a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Stop the process with SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _end_with(starter: Connection) -> None:
    """End this process as soon as the process that started it has ended, however it ended.

    Otherwise a killed program would leave a server and clients that write to its folder.
    """

    def watch() -> None:
        starter.poll(None)  # until the other end is closed
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch the starting process", daemon=True).start()


def _run(
    module: str, arguments: list[str], environment: dict[str, str], stderr: Connection, starter: Connection
) -> None:
    """Run a module in the new process as `python -m module` would."""
    import torch
    from setproctitle import setproctitle

    _end_with(starter)
    os.setsid()  # Ctrl-C reaches the process that started this one, which stops its processes in order
    multiprocessing.current_process().name = "MainProcess"  # transformers takes other names for a data loader's worker
    setproctitle(shlex.join([sys.executable, "-m", module, *arguments]))  # the name that `ps` shows
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    if _THREADS in environment:  # PyTorch reads the variable on import, which has happened already
        torch.set_num_threads(int(environment[_THREADS]))
    sys.argv[1:] = arguments
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
