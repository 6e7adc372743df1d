"""The command line `fedmtl-server`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.errors import ConfigError, RunStoppedError
from fedmtl_core.runtime.allocator import keep_what_is_there
from fedmtl_core.runtime.cli import HelpConfig, LogFormat, LogLevel, new_app
from fedmtl_core.runtime.help_text import reflowed
from fedmtl_server.commands.certs import certs_app
from fedmtl_server.commands.clients import clients_app
from fedmtl_server.commands.doctor import examine as doctor
from fedmtl_server.commands.export import export
from fedmtl_server.commands.runs import runs_app
from fedmtl_server.storage.paths import CONFIG_FILE, RUN_FILE

if TYPE_CHECKING:
    from fedmtl_server.api import Server
    from fedmtl_server.storage.results import TaskResult

app = new_app()
app.add_typer(runs_app, name="runs")
app.add_typer(clients_app, name="clients")
app.add_typer(certs_app, name="certs")
app.command()(export)
app.command("doctor")(doctor)

_Config = Annotated[
    Path | None, typer.Option(help="Configuration file (YAML). Required without --resume.", show_default=False)
]
_Host = Annotated[str | None, typer.Option(help="Address on which the server listens. Overrides server.host.")]
_Port = Annotated[
    int | None, typer.Option(help="Port on which the server listens; 0 chooses any free port. Overrides server.port.")
]
_RunDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the run. A run that is already in the folder is resumed. If not given, a new folder in "
        "server.runs_dir."
    ),
]
_Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN_DIR",
        help="Resume the run in this folder. Its stored configuration applies unless --config is given.",
    ),
]
_Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Allow addresses other than loopback without TLS or authentication. Sets security.insecure.",
    ),
]
_Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
]


@app.callback(invoke_without_command=True)
@reflowed
def serve(
    context: typer.Context,
    config: _Config = None,
    host: _Host = None,
    port: _Port = None,
    run_dir: _RunDir = None,
    resume: _Resume = None,
    insecure: _Insecure = False,
    keep_serving: Annotated[bool, typer.Option(help="Keep serving after the last round, until Ctrl-C.")] = False,
    set_: _Overrides = None,
    log_format: Annotated[LogFormat, typer.Option(help="Format of log lines.")] = LogFormat.console,
    log_level: Annotated[LogLevel, typer.Option(help="Lowest level to log.")] = LogLevel.info,
    help_config: HelpConfig = False,
) -> None:
    """Serve one federated multi-task run, write its results and exit.

    To resume an unfinished run, use --resume with its folder, or repeat the command that had --run-dir. The server
    continues in the interrupted round with every acknowledged update. Without --resume and --run-dir, a new run begins.

    --help-config lists all configuration keys.
    """
    if context.invoked_subcommand is not None:
        return
    logs.configure(log_format.value, log_level.value)
    if resume is not None:
        config, run_dir = _resumed(resume, config, run_dir)
    if config is None:
        raise ConfigError("--config: required, a YAML file; or --resume RUN_DIR to resume a run. See --help")
    overrides = list(set_ or [])
    overrides += [f"server.host={host}"] if host is not None else []
    overrides += [f"server.port={port}"] if port is not None else []
    overrides += ["security.insecure=true"] if insecure else []
    options = {"server.host": ("--host", host), "server.port": ("--port", port)}
    named = {key: option for key, (option, value) in options.items() if value is not None}
    settled = configuration.load(config, overrides, named)

    logs.get_logger().info("server.starting", config=str(config))
    from fedmtl_server.api import Server  # imports PyTorch, which takes seconds; --help doesn't need it

    server = Server(settled, run_dir, keep_serving=keep_serving)
    with _stopped_by_signals(server) as signals:
        try:
            with server:
                keep_what_is_there()
                _show_results(server.wait(), server.run_dir)
                server.join()
        except RunStoppedError:
            typer.echo(
                f"stopped by {signals[0].name} before the run was over; "
                f"resume it with: fedmtl-server --resume {server.run_dir}",
                err=True,
            )
            raise typer.Exit(128 + signals[0]) from None


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[list[signal.Signals]]:
    """Stop the server gracefully on Ctrl-C and SIGTERM; yield the list of signals received."""
    received: list[signal.Signals] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        server.ask_to_stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resumed(folder: Path, config: Path | None, run_dir: Path | None) -> tuple[Path, Path]:
    """Return the configuration file and the folder of the run to resume."""
    if run_dir is not None and run_dir.resolve() != folder.resolve():
        raise ConfigError(f"--resume and --run-dir name different folders: {folder} and {run_dir}")
    if not (folder / RUN_FILE).exists():
        raise ConfigError(f"--resume: {folder} contains no run; list runs with `fedmtl-server runs list`")
    return config or folder / CONFIG_FILE, folder


def _show_results(results: dict[str, TaskResult], run_dir: Path) -> None:
    from fedmtl_core.runtime.tables import results_table

    results_table({task: result.to_dict() for task, result in results.items()}, run_dir)
