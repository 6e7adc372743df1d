"""The command line of the server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.cli import LogFormat, settings_help

if TYPE_CHECKING:
    from fedmtl_server.results import TaskResult

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.command(epilog=settings_help())
def serve(
    config: Annotated[Path, typer.Option(help="The configuration, a YAML file.", show_default=False)],
    host: Annotated[str | None, typer.Option(help="Address to listen on; server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for any; server.port.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; a new one in server.runs_dir if not given.")
    ] = None,
    keep_serving: Annotated[bool, typer.Option(help="Stay after the last round, until Ctrl-C.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="How log lines look.")] = LogFormat.console,
) -> None:
    """Serve one federated multi-task run, write its results and exit.

    Every key of the configuration has a default, listed below.
    """
    logs.configure(log_format.value)
    overrides = list(set_ or [])
    overrides += [f"server.host={host}"] if host is not None else []
    overrides += [f"server.port={port}"] if port is not None else []
    settled = configuration.load(config, overrides)

    logs.get_logger().info("server.starting", config=str(config))
    from fedmtl_server import server  # PyTorch takes seconds to import; --help needn't wait for it

    instance = server.Server(settled, run_dir)
    try:
        asyncio.run(server.serve(instance, keep_serving=keep_serving, on_finished=_show_results))
    except server.Interrupted as interruption:
        typer.echo(f"stopped by {interruption} before the run was over; the last commit is on disk", err=True)
        raise typer.Exit(128 + interruption.signal_number) from None


def _show_results(results: dict[str, TaskResult], run_dir: Path) -> None:
    from fedmtl_core.tables import results_table

    results_table({task: result.to_dict() for task, result in results.items()}, run_dir)
