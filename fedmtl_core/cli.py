"""What the command lines share: options, help, and how errors reach a person."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from enum import StrEnum

import typer
from rich.console import Console
from rich.table import Table

from fedmtl_core import config
from fedmtl_core.errors import FedMTLError, UserError

EXIT_FAILURE, EXIT_USAGE = 1, 2


class LogFormat(StrEnum):
    """How log lines look."""

    console = "console"
    json = "json"


def run(app: Callable[[], object]) -> None:
    """Run a typer application; what goes wrong in a known way is a line on standard error, not a traceback."""
    try:
        app()
    except UserError as error:
        _fail(error, EXIT_USAGE)
    except FedMTLError as error:
        _fail(error, EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def show_settings(wanted: bool) -> None:
    """Print every configuration key with its default, and leave."""
    if not wanted:
        return
    table = Table(title="Configuration keys", title_justify="left")
    for column in ("key", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for setting in config.reference():
        table.add_row(*(cell.replace("[", r"\[") for cell in setting))
    Console().print(table)
    raise typer.Exit


def _fail(error: Exception, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)
