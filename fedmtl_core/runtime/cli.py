"""Parts shared by all command lines: options, help, and error output."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedmtl_core import config
from fedmtl_core.config.documents import shown_path
from fedmtl_core.errors import FedMTLError, UserError
from fedmtl_core.runtime.allocator import keep_freed_blocks
from fedmtl_core.runtime.starting import interrupt_on_ctrl_c

_STYLE: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": "rich"}

EXIT_FAILURE, EXIT_USAGE = 1, 2


class LogFormat(StrEnum):
    """The format of log lines."""

    console = "console"
    json = "json"


class LogLevel(StrEnum):
    """The lowest level to log."""

    info = "info"
    warning = "warning"
    error = "error"


def run(app: Callable[[], object]) -> None:
    """Run a typer application. Known errors are one line on standard error instead of a traceback.

    Unusable paths are known errors too, such as a path that is too long or a folder without read permission.
    """
    keep_freed_blocks()
    try:
        interrupt_on_ctrl_c()
        app()
    except UserError as error:
        _fail(error, EXIT_USAGE)
    except FedMTLError as error:
        _fail(error, EXIT_FAILURE)
    except OSError as error:  # from an unusable path
        if not isinstance(error.filename, (str, bytes)):
            raise
        option, text = _describe(error, sys.argv[1:])
        _fail(FedMTLError(text), EXIT_USAGE if option else EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def new_app(several: str = "") -> typer.Typer:
    """Return a typer application in FedMTL's style.

    Args:
        several: the description of an application with several commands, which shows its help if no command is given.
    """
    if several:
        return typer.Typer(no_args_is_help=True, help=several, **_STYLE)
    return typer.Typer(**_STYLE)


def _show_settings(is_wanted: bool) -> None:
    """Print every configuration key with its default, its meaning and the programs that read it, and exit."""
    if not is_wanted:
        return
    for setting in config.reference():
        typer.echo(f"{setting.key} = {setting.default}" if setting.default else setting.key)
        for line in textwrap.wrap(setting.description, 76, break_on_hyphens=False):
            typer.echo(f"    {line}")
        typer.echo(f"    Read by: {', '.join(setting.read_by)}.")
    raise typer.Exit


HelpConfig = Annotated[
    bool,
    typer.Option(
        "--help-config",
        is_eager=True,
        callback=_show_settings,
        help="Show every configuration key with its default, meaning and readers, and exit.",
    ),
]
"""The option that prints the configuration reference, which is too long for `--help`."""


def _describe(error: OSError, arguments: Sequence[str]) -> tuple[str, str]:
    """Return the option whose value is an unusable path, empty if there is none, and the error message."""
    path = os.fsdecode(error.filename)
    option = ""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=")
        if not equals:
            name, value = before if before.startswith("--") else "", argument
        elif before == "--set":
            name = f"--set {name}"
        if value and not value.startswith("-") and Path(path).is_relative_to(value):
            option = name or shown_path(Path(value))
    reason = f"{shown_path(Path(path))}: {error.strerror or error}"
    return option, f"{option}: {reason}" if option.startswith("--") else reason


def _fail(error: Exception, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)
