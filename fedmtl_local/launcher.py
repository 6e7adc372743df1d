"""Runs one configuration as a server and its clients on this machine, and shows how the rounds go."""

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
"""How long the server may take to start, and the first round waits after the last client that has come, unless
`rounds.await_clients_s` says otherwise."""
END_TIMEOUT_S = 15.0
"""Clients that know that the run is over have so long to end."""


def run_local(
    config: Config | Mapping[str, object] | Path | str, run_dir: Path | str | None = None
) -> dict[str, TaskResult]:
    """Run a whole federation on this machine, a server and the configuration's `clients`, each a process of its own.

    Nothing is printed; what the processes log is in the run's folder, under `logs`.

    Args:
        config: what to run: a `Config`, nested dictionaries, or a YAML file's path.
        run_dir: the run's folder; a new one in `server.runs_dir` if None. A run that it holds is taken up.

    Returns:
        Every task's main metric by round.

    Raises:
        ConfigError: the configuration is wrong or names no clients.
        StoreError: the run that the folder holds is over or served, or it holds something else.
        FedMTLError: a process failed; the message says which, and how.
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
    """One run.

    Args:
        config: what to run; its `clients` say which clients to start.
        config_path: the same as a file, for the processes.
        overrides: `KEY=VALUE` each, for the processes likewise.
        run_dir: the run's folder; a new one in `server.runs_dir` if None. A run that it holds is taken up.
        console: where to say how it goes; standard output if None.
        on_round: told the number of rounds that are done, whenever one opens.
        start: how to start the processes.
        log_level: the least that is said of what the processes log.

    Raises:
        ConfigError: the configuration names no clients, credentials that can't be used, or a client's own file that
            has an error.
        StoreError: the run that the folder holds is over or served, or it holds something else.
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
                f"{config_path}: clients: name those to start, such as `clients: [{{client_id: a, task: sst2}}]`"
            )
        require_own_files(config.clients, overrides)
        self.run_dir = run_dir or config.server.runs_dir / f"{datetime.now():%Y%m%d-%H%M%S}"
        with _blamed_on("--run-dir" if run_dir else "server.runs_dir"):
            _require_free(self.run_dir, config)
        self._config = config
        self._config_path, self._overrides = config_path, overrides
        self._begins_anew = run_dir is None
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
        """Start everything, wait for the end, and print what came of it.

        Returns:
            What is in the run's `results.json`.

        Raises:
            FedMTLError: a process failed; the message says which, and how.
        """
        failed = self._to_the_end()
        results: dict[str, dict[str, object]] = json.loads((self.run_dir / RESULTS_FILE).read_text(encoding="utf-8"))
        results_table(results, self.run_dir, self._console)
        if failed:
            raise _failure(failed)  # the run got over it, but the user should know
        return results

    def complete(self) -> None:
        """As `run`, without a table, and over as soon as a process fails, which the run might get over.

        Raises:
            FedMTLError: a process failed; the message says which, and how.
        """
        if failed := self._to_the_end(gets_over=False):
            raise _failure(failed)

    def how_to_go_on(self) -> str:
        """What to say when it was stopped: whether the run is over, and how it is taken up if it isn't."""
        try:
            state = state_of(self.run_dir, self._config)
        except StoreError as error:
            return f"stopped; {error}"
        if state is None:
            return "stopped before the run began"
        if state == "finished":
            return f"stopped, but the run was over: its results are in {self.run_dir}"
        return f"stopped before the run was over; take it up with: {self._take_up(self.run_dir)}"

    def _to_the_end(self, *, gets_over: bool = True) -> list[LoggedProcess]:
        """The clients that failed in a run that came to its end; nothing runs any more."""
        try:
            with self._progress:
                return self._run(gets_over)
        finally:
            if self._observer:
                self._observer.close()
            stop_all(self._processes)

    def _take_up(self, run_dir: Path) -> str:
        return shlex.join([*self._command, "--run-dir", str(run_dir)])

    def _run(self, gets_over: bool) -> list[LoggedProcess]:
        """The clients that failed in a run that came to its end."""
        if self._begins_anew and (earlier := unfinished_run(self._config)):
            self._say(
                f"a new run begins; one of the same configuration isn't over: {self._take_up(earlier)} goes on with it"
            )
        with _blamed_on("server.runs_dir" if self._begins_anew else "--run-dir"):
            make_run_folder(self.run_dir, self._config.store.readable_by)
            (self.run_dir / "logs").mkdir(exist_ok=True)
        server = self._start_server()
        address = self._await_address(server)
        names = ", ".join(f"{client.client_id} ({', '.join(client.task_names)})" for client in self._config.clients)
        self._say(f"server at {address}, clients {names}; logs and results in {self.run_dir}")
        if lacking := self._lacking():
            self._say(f"the first round waits for clients that `clients` hasn't: {lacking}")
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
        self._await_end(server, clients, gets_over)
        watcher.join(timeout=5)
        return self._end(clients)

    def _lacking(self) -> str:
        """What the first round's quorum lacks when all the clients that are started here have come."""
        config = self._config
        tasks = {client.client_id: client.task_names for client in config.clients}
        firsts = {
            client_id: TaskSchedule(names, config.client.selection, config.training.seed, client_id).first
            for client_id, names in tasks.items()
        }
        offers = {client_id: (firsts[client_id],) if firsts[client_id] else names for client_id, names in tasks.items()}
        return lacking_text(offers, tasks, {name: task.min_clients for name, task in config.tasks.items()})

    def _end(self, clients: list[LoggedProcess]) -> list[LoggedProcess]:
        """Have the clients end, now that the server has ended well; those that failed before are returned.

        One that still looks for the server, such as one that came too late for the run, would do so in vain.
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
        """Start the server such that the first round is of all the clients, and not of those that start faster."""
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
        with uninterrupted():  # else it could be running without anybody to stop it
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
                raise FedMTLError(f"the server didn't start within {START_TIMEOUT_S:.0f} s; see {server.log_path}")
        return address

    def _announced(self, pid: int) -> str:
        """Where a server process listens; empty if it hasn't said so yet: what is there may be an earlier one's."""
        try:
            announcement = json.loads((self.run_dir / SERVER_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ""
        return str(announcement["address"]) if announcement["pid"] == pid else ""

    def _await_end(self, server: LoggedProcess, clients: list[LoggedProcess], gets_over: bool) -> None:
        while server.wait(0.2) is None:
            failed = [client for client in clients if client.returncode not in (None, 0)]
            may_go_on = gets_over and self._first_round_opened.is_set() and len(failed) < len(clients)
            if failed and not may_go_on:
                raise _failure(failed)
        if server.returncode != 0:
            raise _failure([server])

    def _watch(self, observer: FederationApi, bar: TaskID) -> None:
        """Follow the rounds as an observer, and say how they go."""
        try:
            for event in observer.observe():
                self._show(event, bar)
                if event.kind == pb.ROUND_EVENT_KIND_FINISHED:
                    break
        except FedMTLError as error:
            self._say(f"no longer watching the rounds: {error}")

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
def _blamed_on(setting: str) -> Iterator[None]:
    """Have a folder that can't be used told with the option or the key that names it."""
    try:
        yield
    except OSError as error:
        path = documents.shown_path(Path(error.filename or ""))
        raise StoreError(f"{setting}: {path}: {error.strerror or error}") from None


def _require_free(run_dir: Path, config: Config) -> None:
    """Check that a run can begin or go on in a folder, before anything in it is touched.

    Raises:
        StoreError: it can't; the message says why and what to do.
    """
    elsewhere = "choose another folder with --run-dir"
    state = state_of(run_dir, config)
    if state == "finished":
        raise StoreError(
            f"the run in {run_dir} is over: see it with `fedmtl-server runs show {run_dir}`, hand out its model with "
            f"`fedmtl-server --resume {run_dir} --keep-serving`, or {elsewhere}"
        )
    if is_held(run_dir):
        raise StoreError(f"another server is serving the run in {run_dir}; stop it first, or {elsewhere}")
    if state is None and any((run_dir / name).exists() for name in (CONFIG_FILE, SERVER_FILE, "logs")):
        raise StoreError(f"{run_dir} holds what another run left, and no run that could be taken up; {elsewhere}")


def _title(event: pb.WatchRoundsResponse) -> str:
    return event_from_proto(event).title


def _line(event: pb.WatchRoundsResponse, config: Config) -> str:
    """One committed round: how long it took, who counted, and how good the model was that it began with."""
    report = event.report
    metrics = []
    for task in report.tasks:
        name = config.tasks[task.task].spec(task.task).main_metric
        missing = "undefined" if name in task.received_metric_reports else "-"
        value = f"{task.received_metrics[name]:.3f}" if name in task.received_metrics else missing
        metrics.append(f"{name_task(task.task, auxiliary=task.HasField('auxiliary_weight'))} {value}")
    clients = f"{sum(task.num_updates for task in report.tasks)} of {event.cohort_size} clients"
    if report.failed:
        clients += ": not enough, and given up"
    missing = f"; missing: {', '.join(report.missing_clients)}" if report.missing_clients else ""
    return f"{_title(event):>16}  {report.duration_seconds:6.1f} s  {clients}  {'  '.join(metrics)}{missing}"


def _failure(failed: list[LoggedProcess]) -> FedMTLError:
    described = []
    for process in failed:
        state = f"ended with exit code {process.returncode}" if process.returncode is not None else "didn't end"
        lines = "\n".join(f"    {line}" for line in process.tail)
        described.append(f"{process.name} {state}; its last lines, from {process.log_path}:\n{lines}")
    return FedMTLError("\n".join(described))
