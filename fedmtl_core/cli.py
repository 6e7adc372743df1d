"""What the command lines share: options, help, and how errors reach a person."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import typer

from fedmtl_core import config
from fedmtl_core.allocator import keep_freed_blocks
from fedmtl_core.errors import FedMTLError, UserError

_STYLE: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": "rich"}

EXIT_FAILURE, EXIT_USAGE = 1, 2


class LogFormat(StrEnum):
    """How log lines look."""

    console = "console"
    json = "json"


def run(app: Callable[[], object]) -> None:
    """Run a typer application; what goes wrong in a known way is a line on standard error, not a traceback."""
    keep_freed_blocks()
    try:
        app()
    except UserError as error:
        _fail(error, EXIT_USAGE)
    except FedMTLError as error:
        _fail(error, EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def new_app(several: str = "") -> typer.Typer:
    """A command line as all of FedMTL's are.

    Args:
        several: for one of several commands, which shows its help when none is given: what they are for.
    """
    if several:
        return typer.Typer(no_args_is_help=True, help=several, **_STYLE)
    return typer.Typer(**_STYLE)


def settings_help() -> str:
    """Every configuration key with its default, a paragraph for each section, for the end of `--help`."""
    sections: dict[str, list[str]] = {}
    for setting in config.reference():
        section, _, key = setting.key.rpartition(".")
        sections.setdefault(section, []).append(f"{key} = {setting.default}" if setting.default else key)
    paragraphs = [f"{section}: {', '.join(keys)}" for section, keys in sections.items()]
    first = "Configuration keys and their defaults; docs/reference/configuration.md says what they mean."
    return "\n\n".join([first, *paragraphs]).replace("[", r"\[")  # typer takes square brackets for markup


def _fail(error: Exception, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)
