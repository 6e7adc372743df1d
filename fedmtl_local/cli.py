"""The command line `fedmtl-local`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.runtime.cli import HelpConfig, LogLevel, new_app
from fedmtl_core.runtime.help_text import reflowed
from fedmtl_local.interrupts import interruptible

app = new_app()


@app.command()
@reflowed
def run(
    config: Annotated[Path, typer.Option(help="Configuration file (YAML) with a list `clients`.", show_default=False)],
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run. A run that is already in the folder is resumed. If not given, a new folder in "
            "server.runs_dir."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Allow addresses other than loopback without TLS. Sets security.insecure."),
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(help="Lowest level of the processes' log lines to show. The log files contain all lines."),
    ] = LogLevel.warning,
    help_config: HelpConfig = False,
) -> None:
    """Run a whole federation on this machine: a server and the configuration's clients, each as a process.

    Ctrl-C stops all processes. The same configuration with --run-dir resumes the run. --help-config lists all
    configuration keys.

    `fedmtl-local new DIR` writes the files of a new federation.
    """
    logs.configure(level=log_level.value)
    overrides = list(set_ or []) + (["security.insecure=true"] if insecure else [])
    settled = configuration.load(config, overrides)

    if number := len(settled.clients):  # none is an error of the launcher
        typer.echo(f"starting {config}: a server and {number} client{'s' if number > 1 else ''}")
    from fedmtl_local.launcher import LocalRun  # its imports take a while

    run = LocalRun(settled, config, overrides, run_dir, log_level=log_level.value)
    try:
        with interruptible():
            run.run()
    except KeyboardInterrupt:
        typer.echo(run.stop_message(), err=True)
        raise
