"""CSV and TSV: every cell is the text that it is in the file, in the column that the header says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Literal

from fedmtl_client.reading import quoting
from fedmtl_client.reading.errors import MalformedError, counted, excerpt, require_once
from fedmtl_client.reading.records import Record, RecordFile, text_of
from fedmtl_client.tables import Table
from fedmtl_core.logs import get_logger

_LINE_BREAK = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Dialect:
    """How CSV and TSV files are written."""

    quoting: Literal["auto", "none", "minimal"] = "auto"
    """Whether quotes around a cell belong to the file or to the text. `auto` is `minimal` for CSV, and decided from
    the file for TSV."""
    header: Literal["first_row", "none"] = "first_row"
    """Where the columns' names are; with `none` they are numbers, from 1."""


@dataclass(frozen=True)
class _Layout:
    """Which cell of a row belongs to which column."""

    names: Sequence[str]
    """Of the header, in its order."""
    width: int
    """Cells of each row."""
    offset: int = 0
    """Cells of a row before the first named one."""

    def place(self, name: str) -> int:
        """The cell of a column."""
        return self.names.index(name) + self.offset


def read(
    open_file: Callable[[], BinaryIO], name: str, delimiter: str, wanted: Sequence[str], dialect: Dialect
) -> Table:
    """The wanted columns of a file, those that it has.

    Args:
        open_file: opens the file's bytes, from the beginning.
        name: what the log calls it.
        delimiter: between cells.
        wanted: names of columns.
        dialect: how the file is written.

    Raises:
        MalformedError: it isn't UTF-8, has rows with more or fewer cells than its header, or stray quotes.
    """
    is_quoted = _is_quoted(open_file, name, delimiter, dialect)
    file = RecordFile(open_file, delimiter, is_quoted, has_header=dialect.header != "none")
    layout = _layout(file, name)
    require_once(wanted, layout.names)
    columns = _columns(file, layout, [one for one in wanted if one in layout.names])
    return Table(columns, available=[one or "(without a name)" for one in layout.names])


def _is_quoted(open_file: Callable[[], BinaryIO], name: str, delimiter: str, dialect: Dialect) -> bool:
    if dialect.quoting != "auto" or delimiter == ",":
        return dialect.quoting != "none"
    decision = quoting.decide(lambda: text_of(open_file), delimiter)
    if decision.reason:
        value = "minimal" if decision.is_quoted else "none"
        get_logger().info("data.quoting_decided", file=name, quoting=value, reason=decision.reason)
    return decision.is_quoted


def _layout(file: RecordFile, name: str) -> _Layout:
    """What the header says, and where the rows have it.

    Raises:
        MalformedError: there is no header.
    """
    first = file.first()
    if first is None:
        raise MalformedError("it is empty: expected " + ("a header" if file.has_header else "rows"))
    names = first.cells
    if not file.has_header:
        return _Layout([str(number) for number in range(1, len(names) + 1)], len(names))
    if unnamed := [place for place, cell in enumerate(names, 1) if not cell]:
        get_logger().info("data.columns_without_name_ignored", file=name, columns=unnamed)
    row = next(file.rows(), None)
    width = len(row.cells) if row else len(names)
    if width == len(names) - 1 and not names[-1]:
        return _Layout(names[:-1], width)  # a delimiter at the end of the header alone
    if width == len(names) + 1 and (offset := _extra_cell(file, width)) is not None:
        dropped = "first cell of each row: its number" if offset else "last cell of each row: empty"
        get_logger().warning("data.extra_column_dropped", file=name, columns=len(names), dropped=dropped)
        return _Layout(names, width, offset)
    return _Layout(names, len(names))


def _extra_cell(file: RecordFile, width: int) -> int | None:
    """Where the named cells begin in rows that have a cell more than the header; None if nobody can tell.

    0 where each row ends with a delimiter; 1 where each begins with its number, as R's `write.table` writes it.
    """
    is_empty = is_numbered = True
    numbers: list[int] = []
    for record in file.rows():
        cells = record.cells
        if len(cells) != width:
            return None
        is_empty = is_empty and not cells[-1]
        is_numbered = is_numbered and cells[0].isascii() and cells[0].isdigit() and len(cells[0]) < 20
        if is_numbered:
            numbers = [*numbers[-1:], int(cells[0])]
            is_numbered = all(after == before + 1 for before, after in pairwise(numbers))
        if not (is_empty or is_numbered):
            return None
    is_numbered = is_numbered and len(numbers) > 1
    return None if is_empty == is_numbered else int(is_numbered)


def _columns(file: RecordFile, layout: _Layout, wanted: Sequence[str]) -> Mapping[str, list[str]]:
    columns: dict[str, list[str]] = {name: [] for name in wanted}
    places = [(column.append, layout.place(name)) for name, column in columns.items()]
    width = layout.width
    suspects: list[tuple[Record, int]] = []
    for record in file.rows():
        first, last, cells = record
        if len(cells) != width:
            if len(cells) == 1 and not cells[0].strip():
                continue  # a line of spaces
            raise MalformedError(_other_width(record, layout, file))
        if first != last and wanted and _rows_within(record, width, file.delimiter):
            suspects.append((record, len(columns[wanted[0]])))
        for append, place in places:
            append(cells[place])
    if suspects:
        _require_no_swallowed_rows(suspects, columns, layout, file.delimiter)
    return columns


def _other_width(record: Record, layout: _Layout, file: RecordFile) -> str:
    """What is wrong with a row of too many or too few cells."""
    count = len(record.cells)
    shape = f"in the header ({', '.join(layout.names)[:100]})" if file.has_header else "in the first row"
    what = "comma" if file.delimiter == "," else "tab"
    if count < layout.width:
        advice = f"Complete the row, or look for a quote or a {what} that is missing"
    elif file.is_quoted:
        advice = (
            f"If a {what} belongs to a text, put the text in quotes. If each row has a column more, such as row "
            f"numbers, give it a name in the header"
        )
    else:
        advice = f"A {what} can't belong to a text here, for the file is read without quoting (data.quoting)"
    return (
        f"{record.place}: expected {counted(layout.width, 'field')}, as {shape}, found {count:,}: "
        f"{excerpt(file.delimiter.join(record.cells))}. {advice}"
    )


def _rows_within(record: Record, width: int, delimiter: str) -> list[list[str]]:
    """The lines of a record as rows by themselves; none if one of them can't be one."""
    rows = [line.split(delimiter) for line in _LINE_BREAK.split(delimiter.join(record.cells))]
    fits = len(rows) == record.last_line - record.first_line + 1 and all(len(cells) == width for cells in rows)
    return rows if fits else []


def _require_no_swallowed_rows(
    suspects: Iterable[tuple[Record, int]], columns: Mapping[str, Sequence[str]], layout: _Layout, delimiter: str
) -> None:
    """Check that no quoted cell with line breaks is a stray quote that swallowed rows.

    It is one where each of its lines makes a row by itself, and one of the columns that is whole in the record has,
    in these rows, values that other rows have.

    Args:
        suspects: records whose lines could be rows by themselves, each with its row's place in the columns.

    Raises:
        MalformedError: one is.
    """
    counts = {name: Counter(values) for name, values in columns.items()}
    for record, row in suspects:
        rows = _rows_within(record, layout.width, delimiter)
        for name, values in columns.items():
            place = layout.place(name)
            if _LINE_BREAK.search(record.cells[place]):
                continue
            if all(counts[name][cells[place]] > (cells[place] == values[row]) for cells in rows):
                raise MalformedError(
                    f"{record.place}: a quote at the beginning of a cell makes one row of {len(rows)} lines, each of "
                    f"which is a row by itself: {excerpt(delimiter.join(rows[0]))}. If the quote belongs to the text, "
                    f"put the text in quotes and double the quote, or set data.quoting to none"
                )
