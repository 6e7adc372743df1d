"""The command line of a local federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.cli import new_app, settings_help
from fedmtl_local.interrupts import interruptible

app = new_app()


@app.command(epilog=settings_help())
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
) -> None:
    """Run a whole federation on this machine: a server and the configuration's clients, each its own process.

    Ctrl-C stops them. With the same configuration and --run-dir the run is taken up where it was.
    """
    logs.configure(level="warning")
    overrides = list(set_ or []) + (["security.insecure=true"] if insecure else [])
    settled = configuration.load(config, overrides)

    from fedmtl_local.launcher import LocalRun

    run = LocalRun(settled, config, overrides, run_dir)
    try:
        with interruptible():
            run.run()
    except KeyboardInterrupt:
        typer.echo(run.how_to_go_on(), err=True)
        raise
