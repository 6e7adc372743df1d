"""A server for programs and notebooks: it runs in a thread of its own, with an event loop of its own."""

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
    """One run, served: `Server(config).run()`, or in the background with `with Server(config) as server:`.

    It is no concern of an event loop that the caller may have, handles no signal and prints nothing; its log is
    structlog's. A run that the folder holds already is taken up where it was left.

    Args:
        config: what to run: a `Config`, nested dictionaries, or a YAML file's path.
        run_dir: the run's folder; a new one in `server.runs_dir` if None.
        keep_serving: go on handing out the final model when the run is over, until `stop`.

    Raises:
        ConfigError: the configuration is wrong, contradicts the run that the folder holds, or would let anybody in by
            accident.
        ModelUnavailableError: the encoder can't be had.
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
        give_back_freed_blocks()  # of the model as it was loaded
        self._keep_serving = keep_serving
        self._thread = threading.Thread(target=self._serve, name="fedmtl-server", daemon=True)
        self._started: Future[None] = Future()
        self._results: Future[dict[str, TaskResult]] = Future()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_to_stop = False

    @property
    def address(self) -> str:
        """`HOST:PORT` where clients find it; empty before it has started."""
        return self._server.address

    @property
    def run_dir(self) -> Path:
        """The run's folder, once the server has started."""
        return self._server.store.run_dir

    def run(self) -> dict[str, TaskResult]:
        """Serve until the run is over and its clients know; with `keep_serving` until `stop`.

        Returns:
            Every task's main metric by round.

        Raises:
            RunStoppedError: `stop` was called before the run was over.
            FedMTLError: as for `start`, or the run's folder can't be written.
        """
        with self:
            results = self.wait()
            self.join()
        return results

    def start(self) -> None:
        """Begin to serve in the background, and return when clients can come.

        Raises:
            FedMTLError: the address can't be listened on, or the run's folder not be used; the message says why.
            RuntimeError: it was started before.
        """
        self._thread.start()
        self._started.result()

    def wait(self) -> dict[str, TaskResult]:
        """Wait for the run's end. The server still tells its clients of it then, and ends by itself; see `join`.

        Returns:
            Every task's main metric by round.

        Raises:
            RunStoppedError: `stop` was called before.
            FedMTLError: the run's folder can't be written.
        """
        return self._results.result()

    def join(self) -> None:
        """Wait until the server has ended.

        Raises:
            FedMTLError: it didn't end well.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Stop in order, and wait for it. A run that isn't over can be taken up from its folder."""
        self.ask_to_stop()
        with contextlib.suppress(RunStoppedError):  # as asked
            self.join()

    def ask_to_stop(self) -> None:
        """The same without waiting; a signal's handler may call it."""
        self._is_to_stop = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._told_to_stop.set)

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
        except BaseException as error:  # whatever it is, it is the caller's to raise
            self._failure = error
            for future in (self._started, self._results):
                if not future.done():
                    future.set_exception(error)

    async def _main(self) -> None:
        self._told_to_stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._is_to_stop:  # before there was a loop to tell it
            self._told_to_stop.set()
        await server.serve(
            self._server,
            self._told_to_stop,
            keep_serving=self._keep_serving,
            on_started=lambda: self._started.set_result(None),
            on_finished=self._results.set_result,
        )
