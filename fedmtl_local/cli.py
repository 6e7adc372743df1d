"""The command line of a local federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.runtime.cli import HelpConfig, LogLevel, new_app
from fedmtl_local.interrupts import interruptible

app = new_app()


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="The configuration, a YAML file with `clients`.", show_default=False)],
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The run's folder; a new one in server.runs_dir if not given. A run in it is taken up."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Use other addresses than loopback without TLS; security.insecure.")
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key.")
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option(help="The least that is shown of the processes' logs; their files have all of it.")
    ] = LogLevel.warning,
    help_config: HelpConfig = False,
) -> None:
    """Run a whole federation on this machine: a server and the configuration's clients, each its own process.

    Ctrl-C stops them. With the same configuration and --run-dir the run is taken up where it was. Every key of the
    configuration has a default: see --help-config.

    `fedmtl-local new DIR` writes the files of a new federation.
    """
    logs.configure(level=log_level.value)
    overrides = list(set_ or []) + (["security.insecure=true"] if insecure else [])
    settled = configuration.load(config, overrides)

    typer.echo(f"starting {config}: a server and {len(settled.clients)} clients")
    from fedmtl_local.launcher import LocalRun  # it imports for a while

    run = LocalRun(settled, config, overrides, run_dir, log_level=log_level.value)
    try:
        with interruptible():
            run.run()
    except KeyboardInterrupt:
        typer.echo(run.how_to_go_on(), err=True)
        raise
