"""The server for programs and notebooks. It runs in its own thread with its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.config import Config
from fedmtl_core.errors import RunStoppedError
from fedmtl_core.runtime.allocator import give_back_freed_blocks
from fedmtl_server import server
from fedmtl_server.storage.results import TaskResult


class Server:
    """Serves one run: `Server(config).run()`, or in the background with `with Server(config) as server:`.

    The server is independent of the caller's event loop, handles no signals and prints nothing. It logs with structlog.
    If the run folder already has a run, the server resumes it.

    Args:
        config: a `Config`, nested dictionaries, or the path of a YAML file.
        run_dir: the run folder; a new one in `server.runs_dir` if None.
        keep_serving: whether to keep serving the final model after the end of the run, until `stop`.

    Raises:
        ConfigError: the configuration is wrong, contradicts the run in the folder, or would admit any client by
            accident.
        ModelUnavailableError: the encoder can't be loaded.
        StoreError: the folder can't be read.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | Path | str,
        run_dir: Path | str | None = None,
        *,
        keep_serving: bool = False,
    ):
        logs.be_quiet_unless_configured()
        folder = None if run_dir is None else Path(run_dir)
        self._server = server.Server(configuration.resolve(config), folder, finished=keep_serving)
        give_back_freed_blocks()  # loading the model has freed large blocks
        self._keep_serving = keep_serving
        self._thread = threading.Thread(target=self._serve, name="fedmtl-server", daemon=True)
        self._started: Future[None] = Future()
        self._results: Future[dict[str, TaskResult]] = Future()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_to_stop = False

    @property
    def address(self) -> str:
        """The server's address, `HOST:PORT`; empty before the server has started."""
        return self._server.address

    @property
    def run_dir(self) -> Path:
        """The run folder, available after the server has started."""
        return self._server.store.run_dir

    def run(self) -> dict[str, TaskResult]:
        """Serve until the run is over and its clients are notified; with `keep_serving`, until `stop`.

        Returns:
            Every task's main metric by round.

        Raises:
            RunStoppedError: `stop` was called before the run was over.
            FedMTLError: the server can't start (see `start`), or the run folder can't be written.
        """
        with self:
            results = self.wait()
            self.join()
        return results

    def start(self) -> None:
        """Start serving in the background, and return when clients can connect.

        Raises:
            FedMTLError: the server can't listen on the address or can't use the run folder; the message says why.
            RuntimeError: the server was started before.
        """
        self._thread.start()
        self._started.result()

    def wait(self) -> dict[str, TaskResult]:
        """Wait for the end of the run. The server then notifies its clients and ends by itself; see `join`.

        Returns:
            Every task's main metric by round.

        Raises:
            RunStoppedError: `stop` was called before the end of the run.
            FedMTLError: the run folder can't be written.
        """
        return self._results.result()

    def join(self) -> None:
        """Wait until the server has ended.

        Raises:
            FedMTLError: the server ended with this error.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Shut down in order and wait for the end. An unfinished run can be resumed from its folder."""
        self.ask_to_stop()
        with contextlib.suppress(RunStoppedError):  # the caller asked for the stop
            self.join()

    def ask_to_stop(self) -> None:
        """Ask the server to shut down without waiting for its end. A signal handler may call this."""
        self._is_to_stop = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stop_requested.set)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_over = self._results.done() and self._results.exception() is None
        if kind is None and is_over and not self._keep_serving:
            self.join()
        else:
            self.stop()

    def _serve(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # any error is raised in the caller's thread
            self._failure = error
            for future in (self._started, self._results):
                if not future.done():
                    future.set_exception(error)

    async def _main(self) -> None:
        self._stop_requested = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._is_to_stop:  # `ask_to_stop` was called before the loop existed
            self._stop_requested.set()
        await server.serve(
            self._server,
            self._stop_requested,
            keep_serving=self._keep_serving,
            on_started=lambda: self._started.set_result(None),
            on_finished=self._results.set_result,
        )
