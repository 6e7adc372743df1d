"""Output of the commands: tables and values with arbitrary text."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.text import Text

_LEAST = 24
"""Minimum width of columns whose cells may wrap."""
_WIDTH = 160
"""Width in characters of a table that isn't printed to a terminal."""


class Table:
    """A table as wide as the terminal, whose cells may contain any text.

    Args:
        title: the title above the table.
        columns: the columns' names.
        wrapped: the columns whose cells wrap if the table is too wide.
    """

    def __init__(self, title: str, *columns: str, wrapped: Collection[str] = ()):
        self._title = title
        self._columns = columns
        self._wrapped = wrapped
        self._rows: list[list[Text]] = []

    def add(self, *cells: object) -> None:
        self._rows.append([_text(cell) for cell in cells])

    def show(self) -> None:
        """Print the table, or a line that says that it has no rows."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        if not self._rows:
            typer.echo(f"{self._title}: none.")
            return
        table = Table(title=self._title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        widths = [self._width(number) for number in range(len(self._columns))]
        for column, width in zip(self._columns, widths, strict=True):
            table.add_column(column, min_width=width, no_wrap=column not in self._wrapped)
        for row in self._rows:
            table.add_row(*row)
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _WIDTH
        console.width = max(console.width, sum(widths) + 3 * len(widths))  # no cell is truncated
        console.print(table)

    def _width(self, number: int) -> int:
        """Return the minimum width of a column: its longest cell, or less if the column wraps."""
        from rich.cells import cell_len

        name = self._columns[number]
        longest = max(cell_len(line) for line in [*name.split("\n"), *(row[number].plain for row in self._rows)])
        return min(longest, _LEAST) if name in self._wrapped else longest


def print_facts(**facts: object) -> None:
    """Print each value with its name on a line."""
    for name, value in facts.items():
        typer.echo(f"{name:<10} {_printable(value)}")


def json_text(value: object) -> str:
    """Return a value as indented JSON with a final line break."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def print_json(value: object) -> None:
    """Print a value as JSON."""
    typer.echo(json_text(value), nl=False)


def _text(value: object) -> Text:
    from rich.text import Text

    return Text(_printable(value))


def _printable(value: object) -> str:
    """Return text that is safe for a terminal: control characters, which a client may have sent, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def time_text(unix_ms: int) -> str:
    """Return the local time to the second."""
    return datetime.fromtimestamp(unix_ms / 1000).isoformat(" ", "seconds")


def bytes_text(num_bytes: int) -> str:
    """Return a number of bytes in a suitable decimal unit."""
    from rich.filesize import decimal

    return decimal(num_bytes)
