"""`fedmtl-server doctor`: checks everything that a server needs, without starting one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmtl_core import config as configuration
from fedmtl_core import logs
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.cli import EXIT_FAILURE
from fedmtl_core.runtime.help_text import reflowed


@reflowed
def examine(
    config: Annotated[Path | None, typer.Option(help="Configuration file (YAML).", show_default=False)] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run. If not given, a new run is assumed.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check everything that a server with this configuration needs, and explain how to fix each problem.

    It starts and changes nothing. The exit code is 1 if the server would fail.
    """
    logs.configure(level="critical")  # the findings are the output
    if not as_json:
        typer.echo("checking what a server needs; this takes some seconds", err=True)
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
