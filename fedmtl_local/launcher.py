"""Runs one configuration as a server and its clients on this machine, and shows the progress of the rounds."""

from __future__ import annotations

import json
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from fedmtl.v1 import federation_pb2 as pb
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedmtl_client import credentials
from fedmtl_client.api import ConnectionSettings, FederationApi
from fedmtl_client.messages import event_from_proto
from fedmtl_client.schedule import TaskSchedule
from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.config import Config, LocalClient, documents
from fedmtl_core.errors import ConfigError, FedMTLError, StoreError
from fedmtl_core.identifiers import name_task
from fedmtl_core.logs import JOINED, LogLevel
from fedmtl_core.runtime.tables import results_table
from fedmtl_local.client_options import options_of, require_own_files
from fedmtl_local.interrupts import uninterrupted
from fedmtl_local.processes import LoggedProcess, Program, Start, num_processors, start_module, stop_all
from fedmtl_server.rounds.quorums import lacking_text
from fedmtl_server.storage.folders import state_of, unfinished_run
from fedmtl_server.storage.lock import is_held
from fedmtl_server.storage.paths import CONFIG_FILE, RESULTS_FILE, SERVER_FILE
from fedmtl_server.storage.permissions import make_run_folder
from fedmtl_server.storage.results import TaskResult

START_TIMEOUT_S = 180.0
"""The longest that the server may take to start, in seconds. It is also this launcher's default of
`rounds.await_clients_s`: how long the first round waits after the last client that has joined."""
END_TIMEOUT_S = 15.0
"""The time that clients have to end after they learned that the run is over, in seconds."""


def run_local(
    config: Config | Mapping[str, object] | Path | str, run_dir: Path | str | None = None
) -> dict[str, TaskResult]:
    """Run a whole federation on this machine: a server and the configuration's `clients`, each in its own process.

    Nothing is printed. The processes write their logs to `logs` in the run folder.

    Args:
        config: a `Config`, nested dictionaries, or the path of a YAML file.
        run_dir: the run folder; a new one in `server.runs_dir` if None. A run in it is resumed.

    Returns:
        Every task's main metric by round.

    Raises:
        ConfigError: the configuration is wrong or names no clients.
        StoreError: the run in the folder is over or being served, or the folder holds something else.
        FedMTLError: a process failed; the message names the process and the failure.
    """
    logs.be_quiet_unless_configured()
    settled, folder = configuration.resolve(config), None if run_dir is None else Path(run_dir)
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(config, (Path, str)):
            path = Path(config)
        else:
            path = Path(scratch) / "config.yaml"  # the processes read a file
            path.write_text(configuration.dump(settled), encoding="utf-8")
        results = LocalRun(settled, path, [], folder, console=Console(quiet=True)).run()
    return {task: TaskResult.from_dict(result) for task, result in results.items()}


class LocalRun:
    """One run of a local federation.

    Args:
        config: the configuration; its `clients` lists the clients to start.
        config_path: the file with the same configuration, which the processes read.
        overrides: `KEY=VALUE` overrides of the configuration, which the processes get as well.
        run_dir: the run folder; a new one in `server.runs_dir` if None. A run in it is resumed.
        console: where progress is printed; standard output if None.
        on_round: called with the number of finished rounds whenever a round opens.
        start: starts a process.
        log_level: the lowest level of the processes' log lines to print.

    Raises:
        ConfigError: the configuration names no clients, its credentials can't be used, or a client's own file has an
            error.
        StoreError: the run in the folder is over or being served, or the folder holds something else.
    """

    def __init__(
        self,
        config: Config,
        config_path: Path,
        overrides: list[str],
        run_dir: Path | None = None,
        *,
        console: Console | None = None,
        on_round: Callable[[int], None] = lambda done: None,
        start: Start = start_module,
        log_level: LogLevel = "warning",
    ):
        if not config.clients:
            raise ConfigError(
                f"{config_path}: clients: expected at least one client to start, got none; for example "
                "`clients: [{client_id: a, task: sst2}]`"
            )
        require_own_files(config, config_path, overrides)
        self.run_dir = run_dir or config.server.runs_dir / f"{datetime.now():%Y%m%d-%H%M%S}"
        with _attributed_to("--run-dir" if run_dir else "server.runs_dir"):
            _require_free(self.run_dir, config)
        self._config = config
        self._config_path, self._overrides = config_path, overrides
        self._is_new = run_dir is None
        self._command = ["fedmtl-local", "--config", str(config_path)]
        self._command += [part for text in overrides for part in ("--set", text)]
        self._credentials = credentials.load(config)
        self._options = ["--config", str(config_path)] + [part for text in overrides for part in ("--set", text)]
        self._console = console or Console()
        self._on_round = on_round
        self._start_process = start
        self._log_level: LogLevel = log_level
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._processes: list[LoggedProcess] = []
        self._observer: FederationApi | None = None
        self._first_round_opened = threading.Event()

    def run(self) -> dict[str, dict[str, object]]:
        """Start all processes, wait for the end of the run, and print the results.

        Returns:
            The content of the run's `results.json`.

        Raises:
            FedMTLError: a process failed; the message names the process and the failure.
        """
        failed = self._run_to_end()
        results: dict[str, dict[str, object]] = json.loads((self.run_dir / RESULTS_FILE).read_text(encoding="utf-8"))
        results_table(results, self.run_dir, self._console)
        if failed:
            raise _failure(failed, "the run finished, but ")
        return results

    def complete(self) -> None:
        """Run like `run`, but print no table, and stop as soon as any process fails.

        Raises:
            FedMTLError: a process failed; the message names the process and the failure.
        """
        if failed := self._run_to_end(tolerates_failures=False):
            raise _failure(failed)

    def stop_message(self) -> str:
        """Return the message for a user who interrupted the run: its state, and the command that resumes it."""
        try:
            state = state_of(self.run_dir, self._config)
        except StoreError as error:
            return f"stopped; {error}"
        if state is None:
            return "stopped before the run began"
        if state == "finished":
            return f"stopped after the end of the run: its results are in {self.run_dir}"
        return f"stopped before the run was over; resume it with: {self._resume_command(self.run_dir)}"

    def _run_to_end(self, *, tolerates_failures: bool = True) -> list[LoggedProcess]:
        """Run to the end, stop all processes, and return the clients that failed."""
        try:
            with self._progress:
                return self._run(tolerates_failures)
        finally:
            if self._observer:
                self._observer.close()
            stop_all(self._processes)

    def _resume_command(self, run_dir: Path) -> str:
        return shlex.join([*self._command, "--run-dir", str(run_dir)])

    def _run(self, tolerates_failures: bool) -> list[LoggedProcess]:
        """Run to the end and return the clients that failed."""
        if self._is_new and (earlier := unfinished_run(self._config)):
            self._say(
                "starting a new run, although an earlier run of the same configuration isn't over; resume the earlier "
                f"run with: {self._resume_command(earlier)}"
            )
        with _attributed_to("server.runs_dir" if self._is_new else "--run-dir"):
            make_run_folder(self.run_dir, self._config.store.readable_by)
            (self.run_dir / "logs").mkdir(exist_ok=True)
        server = self._start_server()
        address = self._await_address(server)
        names = ", ".join(f"{client.client_id} ({', '.join(client.task_names)})" for client in self._config.clients)
        self._say(f"server at {address}, clients {names}; logs and results in {self.run_dir}")
        if lacking := self._lacking():
            self._say(f"the first round waits for clients that are not in `clients`: {lacking}")
        bar = self._progress.add_task("starting the clients", total=self._config.training.num_rounds)
        self._observer = FederationApi(
            address,
            client_id="",
            task="",
            reconnect_s=START_TIMEOUT_S,
            connection=ConnectionSettings(self._credentials),
        )
        watcher = threading.Thread(target=self._watch, args=(self._observer, bar), daemon=True)
        watcher.start()
        clients = [self._start_client(address, client) for client in self._config.clients]
        self._await_end(server, clients, tolerates_failures)
        watcher.join(timeout=5)
        return self._end(clients)

    def _lacking(self) -> str:
        """Return what the first round's quorum lacks once all clients that this launcher starts have joined."""
        config = self._config
        tasks = {client.client_id: client.task_names for client in config.clients}
        preferred = {
            client_id: TaskSchedule(names, config.client.selection, config.training.seed, client_id).first
            for client_id, names in tasks.items()
        }
        able = {client_id: (first,) if (first := preferred[client_id]) else names for client_id, names in tasks.items()}
        return lacking_text(able, tasks, {name: task.min_clients for name, task in config.tasks.items()})

    def _end(self, clients: list[LoggedProcess]) -> list[LoggedProcess]:
        """Wait for the clients to end after the server ended without an error, and return the clients that failed.

        Clients that are still looking for the server, for example because they started late, are stopped.
        """
        failed = [client for client in clients if client.returncode not in (None, 0)]
        late = [client for client in clients if client.returncode is None and not client.has_reached]
        give_up = time.monotonic() + END_TIMEOUT_S
        for client in late:
            self._say(f"{client.name} never joined: the run was over")
        stop_all(late)
        for client in (client for client in clients if client not in [*failed, *late]):
            if client.wait(max(0.0, give_up - time.monotonic())) is None:
                self._say(f"{client.name} was still looking for the server: the run was over")
                stop_all([client])
            elif client.returncode != 0:
                failed.append(client)
        return failed

    def _start_server(self) -> LoggedProcess:
        """Start the server so that the first round waits for all clients, not only for the fastest to start."""
        options = ["--port", "0", "--run-dir", str(self.run_dir)]
        if self._config.rounds.await_clients_s is None:
            options += ["--set", f"rounds.await_clients_s={START_TIMEOUT_S:.0f}"]
        return self._start("server", Program("fedmtl_server", [*self._options, *options]))

    def _start_client(self, address: str, client: LocalClient) -> LoggedProcess:
        threads = max(1, num_processors() // len(self._config.clients))
        options = options_of(client, address, self._config_path, self._overrides)
        program = Program("fedmtl_client", options, {"OMP_NUM_THREADS": str(threads)})
        return self._start(f"client-{client.client_id}", program, milestone=JOINED)

    def _start(self, name: str, program: Program, milestone: str = "") -> LoggedProcess:
        with uninterrupted():  # an interrupt here could leave a process that nothing stops
            process = LoggedProcess(
                name,
                program,
                self.run_dir / "logs" / f"{name}.log",
                on_line=lambda name, line: self._say(f"{name}: {line}"),
                log_level=self._log_level,
                milestone=milestone,
                start=self._start_process,
            )
            self._processes.append(process)
        return process

    def _await_address(self, server: LoggedProcess) -> str:
        give_up = time.monotonic() + START_TIMEOUT_S
        while not (address := self._announced(server.pid)):
            if server.wait(0.1) is not None:
                raise _failure([server])
            if time.monotonic() > give_up:
                raise FedMTLError(
                    f"the server did not start within {START_TIMEOUT_S:.0f} s; its log is {server.log_path}"
                )
        return address

    def _announced(self, pid: int) -> str:
        """Return the address of a server process; empty until the server has written it.

        The file may still have the address of an earlier server, so the process id is compared.
        """
        try:
            announcement = json.loads((self.run_dir / SERVER_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ""
        return str(announcement["address"]) if announcement["pid"] == pid else ""

    def _await_end(self, server: LoggedProcess, clients: list[LoggedProcess], tolerates_failures: bool) -> None:
        while server.wait(0.2) is None:
            failed = [client for client in clients if client.returncode not in (None, 0)]
            may_continue = tolerates_failures and self._first_round_opened.is_set() and len(failed) < len(clients)
            if failed and not may_continue:
                raise _failure(failed)
        if server.returncode != 0:
            raise _failure([server])

    def _watch(self, observer: FederationApi, bar: TaskID) -> None:
        """Follow the rounds as an observer and print their progress."""
        try:
            for event in observer.observe():
                self._show(event, bar)
                if event.kind == pb.ROUND_EVENT_KIND_FINISHED:
                    break
        except FedMTLError as error:
            self._say(f"the progress of the rounds is no longer shown: {error}")

    def _show(self, event: pb.WatchRoundsResponse, bar: TaskID) -> None:
        if event.kind == pb.ROUND_EVENT_KIND_OPENED:
            self._first_round_opened.set()
            self._progress.update(bar, description=_title(event), completed=event.round - 1)
            self._on_round(event.round - 1)
        if event.kind in (pb.ROUND_EVENT_KIND_COMMITTED, pb.ROUND_EVENT_KIND_FAILED):
            self._say(_line(event, self._config))

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _attributed_to(setting: str) -> Iterator[None]:
    """Attribute the errors of an unusable folder to the option or key that names the folder."""
    try:
        yield
    except OSError as error:
        path = documents.shown_path(Path(error.filename or ""))
        raise StoreError(
            f"{setting}: expected a folder that you can write to, can't use {path}: {error.strerror or error}"
        ) from None


def _require_free(run_dir: Path, config: Config) -> None:
    """Check that a run can start or continue in a folder, before any file in the folder changes.

    Raises:
        StoreError: a run can't; the message has the reason and advice.
    """
    elsewhere = "choose another folder with --run-dir"
    state = state_of(run_dir, config)
    if state == "finished":
        raise StoreError(
            f"the run in {run_dir} is over: see it with `fedmtl-server runs show {run_dir}`, serve its model with "
            f"`fedmtl-server --resume {run_dir} --keep-serving`, or {elsewhere}"
        )
    if is_held(run_dir):
        raise StoreError(f"another server is serving the run in {run_dir}; stop it first, or {elsewhere}")
    if state is None and any((run_dir / name).exists() for name in (CONFIG_FILE, SERVER_FILE, "logs")):
        raise StoreError(
            f"{run_dir} has files of another run ({CONFIG_FILE}, {SERVER_FILE} or logs), but no run to resume; "
            f"{elsewhere}"
        )


def _title(event: pb.WatchRoundsResponse) -> str:
    return event_from_proto(event).title


def _line(event: pb.WatchRoundsResponse, config: Config) -> str:
    """Return an ended round's line: its duration, the clients counted, and the metrics of the model it began with."""
    report = event.report
    metrics = []
    for task in report.tasks:
        name = config.tasks[task.task].spec(task.task).main_metric
        missing = "undefined" if name in task.received_metric_reports else "-"
        value = f"{task.received_metrics[name]:.3f}" if name in task.received_metrics else missing
        metrics.append(f"{name_task(task.task, auxiliary=task.HasField('auxiliary_weight'))} {value}")
    clients = f"{sum(task.num_updates for task in report.tasks)} of {event.cohort_size} clients"
    if report.failed:
        clients += ": not enough; the round failed"
    missing = f"; missing: {', '.join(report.missing_clients)}" if report.missing_clients else ""
    return f"{_title(event):>16}  {report.duration_seconds:6.1f} s  {clients}  {'  '.join(metrics)}{missing}"


def _failure(failed: list[LoggedProcess], prefix: str = "") -> FedMTLError:
    described = []
    for process in failed:
        code = process.returncode
        state = "did not end" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            state += f" (signal {-code})"
        lines = "\n".join(f"    {line}" for line in process.tail)
        described.append(f"{process.name} {state}; the last lines of its log, {process.log_path}:\n{lines}")
    return FedMTLError(prefix + "\n".join(described))
