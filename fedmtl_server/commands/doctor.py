"""`fedmtl-server doctor`: look at everything a server needs, without starting it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.cli import EXIT_FAILURE


def examine(
    config: Annotated[Path | None, typer.Option(help="The configuration, a YAML file.", show_default=False)] = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder, if it isn't to be a new one.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at what a server with this configuration needs, and say what is missing. Nothing is started or changed.

    The exit code is 1 if the server wouldn't work.
    """
    logs.configure(level="critical")  # what there is to say are the findings
    if not as_json:
        typer.echo("looking at what a server needs; it takes some seconds", err=True)
    found = doctor.findings("environment", doctor.environment)
    try:
        settled = configuration.load(config, list(set_ or []))
    except ConfigError as error:
        found.append(doctor.fail("configuration", str(error)))
    else:
        found.append(doctor.ok("configuration", str(config or "the defaults")))
        from fedmtl_server.doctor import examine as examine_server

        found += examine_server(settled, run_dir)
    doctor.tell(found, as_json=as_json)
    if doctor.has_failed(found):
        raise typer.Exit(EXIT_FAILURE)
