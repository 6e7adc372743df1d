"""Decides for a TSV file whether quotes around cells are part of the format or of the text."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TextIO

from fedmtl_client.reading.errors import MalformedError, counted
from fedmtl_client.reading.records import cell_reader

_CLEAR = 10
"""If evidence is contradictory, the side with at least this many times as much decides."""

OpenText = Callable[[], AbstractContextManager[TextIO]]


@dataclass(frozen=True)
class Decision:
    """Whether cells are quoted, and the reason."""

    is_quoted: bool
    reason: str
    """Empty if no cell begins with a quote, so that both readings are the same."""


@dataclass
class _Cells:
    """Statistics of a file's cells, read without quoting."""

    num_rows: int = 0
    """Number of lines after the header."""
    widths: set[int] = field(default_factory=set)
    """Numbers of cells in these lines."""
    opening: int = 0
    """Number of cells that begin with a quote, whether they are quoted or not."""
    quoted: int = 0
    """Number of quoted cells: in quotes from end to end, with only doubled or escaped quotes inside."""
    doubled: int = 0
    """Number of quoted cells with doubled quotes inside."""
    escaped: int = 0
    """Number of quoted cells with a backslash before each quote inside, as R's `write.table` and Spark write them."""
    stray: int = 0
    """Number of unquoted cells with a quote: a program that quotes cells would have quoted them."""
    quoted_commas: int = 0
    """Number of quoted cells with a comma, which spreadsheets quote even in TSV."""
    other_commas: int = 0
    """Number of unquoted cells with a comma."""
    header_is_quoted: bool = False
    """Whether every cell of the header is quoted."""
    header_width: int = 0
    """Number of cells in the header; 0 without a header."""
    quoted_by_column: Counter[int] = field(default_factory=Counter)
    """Number of quoted cells by column, without the header."""

    def add(self, cells: list[str]) -> None:
        """Count a row's cells."""
        self.num_rows += 1
        self.widths.add(len(cells))
        for place, cell in enumerate(cells):
            if '"' not in cell:
                self.other_commas += "," in cell
                continue
            self.opening += cell.startswith('"')
            if _is_stray(cell):
                self.stray += 1
                self.other_commas += "," in cell
                continue
            self.quoted += 1
            self.quoted_by_column[place] += 1
            self.quoted_commas += "," in cell
            self.escaped += (is_escaped := '\\"' in cell[1:-1])
            self.doubled += '""' in cell[1:-1] and not is_escaped


@dataclass(frozen=True)
class _Quoted:
    """Statistics of a file read with quoting."""

    width: int
    """Number of cells in each row."""
    holds_breaks: bool
    """Whether a cell contains a delimiter or a line break."""
    stray: int
    """Number of lines that are rows of one unquoted cell with a quote."""


def _is_quoted(cell: str) -> bool:
    inner = cell[1:-1].replace('\\"', "").replace('""', "")
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner


def _is_stray(cell: str) -> bool:
    """Whether a cell has a quote but isn't quoted."""
    return '"' in cell and not _is_quoted(cell)


def decide(open_text: OpenText, delimiter: str, has_header: bool) -> Decision:
    """Decide from all cells of a file.

    Args:
        open_text: opens the file's text from the beginning.
        delimiter: the character between cells.
        has_header: whether the first row has the column names.

    Raises:
        MalformedError: the evidence is contradictory, or quotes are escaped by backslashes.
    """
    cells = _look(open_text, delimiter, has_header)
    if not cells.opening:
        return Decision(False, "")
    quoted = _read_quoted(open_text, delimiter, has_header)
    if quoted and quoted.holds_breaks:
        has_header_width = quoted.width == cells.header_width and cells.widths != {cells.header_width}
        if cells.header_is_quoted or len(cells.widths) > 1 or has_header_width:
            return Decision(True, "quoted cells hold tabs or line breaks")
        if cells.widths == {1} and not quoted.stray:
            return _one_column(cells)
    if quoted and cells.header_is_quoted:
        return Decision(True, "all cells of the header are quoted")
    if (cells.doubled or cells.escaped) and cells.stray:
        return _weighed(cells)
    if cells.stray:
        return Decision(False, f"{counted(cells.stray, 'unquoted cell')} with quotes")
    if cells.escaped:
        raise MalformedError(_escaped(cells))
    if cells.doubled:
        return Decision(True, f"{counted(cells.doubled, 'quoted cell')} with doubled quotes inside")
    if cells.header_is_quoted or (cells.num_rows > 1 and cells.num_rows in cells.quoted_by_column.values()):
        return Decision(True, "all cells of the header or of a column are quoted")
    if cells.quoted_commas == cells.quoted and not cells.other_commas:
        return Decision(True, "the cells with a comma are quoted, and no others, as spreadsheets write them")
    return Decision(
        False, f"{counted(cells.quoted, 'cell')} quoted without need, in columns that aren't quoted throughout"
    )


def _one_column(cells: _Cells) -> Decision:
    """Decide for a file of one column in which each stray quote may begin or end a cell of several lines."""
    if cells.doubled:
        return Decision(True, f"{counted(cells.doubled, 'quoted cell')} with doubled quotes inside")
    raise MalformedError(
        f"the file has one column, and {counted(cells.stray, 'line')} with quotes that may be part of the text, or "
        f"enclose a text of several lines: set data.quoting to none or to minimal"
    )


def _weighed(cells: _Cells) -> Decision:
    """Decide for a file with quoted cells and with unquoted cells that contain quotes."""
    quoted = counted(cells.doubled + cells.escaped, "quoted cell") + " with quotes inside"
    stray = counted(cells.stray, "unquoted cell") + " with quotes"
    if cells.stray >= _CLEAR * (cells.doubled + cells.escaped):
        return Decision(False, f"{stray}, against {quoted}")
    if cells.escaped:
        raise MalformedError(_escaped(cells))
    if cells.doubled >= _CLEAR * cells.stray:
        return Decision(True, f"{quoted}, against {stray}")
    raise MalformedError(
        f"the file has {quoted}, and {stray}: set data.quoting to minimal if quotes around a cell are part of the "
        f"format, or to none if they are part of the text"
    )


def _escaped(cells: _Cells) -> str:
    return (
        f"{counted(cells.escaped, 'quoted cell')} with a backslash before each quote inside. Write the file with "
        f'doubled quotes (in R, qmethod = "double"; in Spark, the option escape), or set data.quoting to none if '
        f"quotes and backslashes are part of the text"
    )


def _look(open_text: OpenText, delimiter: str, has_header: bool) -> _Cells:
    found, is_header = _Cells(), has_header
    with open_text() as lines:
        for line in lines:
            if text := line.rstrip("\r\n"):
                cells = text.split(delimiter)
                if is_header:
                    found.header_width = len(cells)
                    found.header_is_quoted = all(map(_is_quoted, cells))
                    found.opening += any(cell.startswith('"') for cell in cells)
                elif len(cells) > 1 or text.strip():
                    found.add(cells)
                is_header = False
    return found


def _read_quoted(open_text: OpenText, delimiter: str, has_header: bool) -> _Quoted | None:
    """Return the statistics of a file read with quoting; None for stray quotes or rows of several widths."""
    widths: set[int] = set()
    holds_breaks, stray, raw = False, 0, ""

    def remembered(lines: Iterable[str]) -> Iterator[str]:
        nonlocal raw
        for line in lines:
            raw = line
            yield line

    with open_text() as lines:
        rows = cell_reader(remembered(lines), delimiter, is_quoted=True)
        try:
            if has_header:
                next(filter(None, rows), None)  # the header may be shorter
            last = rows.line_num
            for cells in rows:
                is_one_line, last = rows.line_num == last + 1, rows.line_num
                if len(cells) > 1 or "".join(cells).strip():
                    widths.add(len(cells))
                    holds_breaks = holds_breaks or not is_one_line or raw.count(delimiter) >= len(cells)
                    stray += is_one_line and len(cells) == 1 and _is_stray(raw.rstrip("\r\n"))
        except csv.Error:
            return None
    return _Quoted(max(widths, default=0), holds_breaks, stray) if len(widths) <= 1 else None
