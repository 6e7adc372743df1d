"""What the commands print: tables and values that may hold anything."""

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
"""Width that columns of several lines keep."""
_WIDTH = 160
"""Columns of a table that isn't for a terminal."""


class Table:
    """A table for people, as wide as the terminal; of cells that may hold anything.

    Args:
        title: above it.
        columns: their names.
        wrapped: those that take several lines where the table is too wide.
    """

    def __init__(self, title: str, *columns: str, wrapped: Collection[str] = ()):
        self._title = title
        self._columns = columns
        self._wrapped = wrapped
        self._rows: list[list[Text]] = []

    def add(self, *cells: object) -> None:
        self._rows.append([_text(cell) for cell in cells])

    def show(self) -> None:
        """Print it; if it has no rows, that."""
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
        console.width = max(console.width, sum(widths) + 3 * len(widths))  # nothing is cut off
        console.print(table)

    def _width(self, number: int) -> int:
        """What a column needs: all of its cells, or where they are long some of it."""
        from rich.cells import cell_len

        name = self._columns[number]
        longest = max(cell_len(line) for line in [*name.split("\n"), *(row[number].plain for row in self._rows)])
        return min(longest, _LEAST) if name in self._wrapped else longest


def print_facts(**facts: object) -> None:
    """Print values under their names, a line each."""
    for name, value in facts.items():
        typer.echo(f"{name:<10} {_printable(value)}")


def json_text(value: object) -> str:
    """A value as JSON, on lines of its own."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def print_json(value: object) -> None:
    """Print a value as JSON."""
    typer.echo(json_text(value), nl=False)


def _text(value: object) -> Text:
    from rich.text import Text

    return Text(_printable(value))


def _printable(value: object) -> str:
    """Text as a terminal may see it: no control characters, which a client may have sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def time_text(unix_ms: int) -> str:
    """Local time to the second."""
    return datetime.fromtimestamp(unix_ms / 1000).isoformat(" ", "seconds")


def bytes_text(num_bytes: int) -> str:
    """So many bytes, in a unit that suits them."""
    from rich.filesize import decimal

    return decimal(num_bytes)
