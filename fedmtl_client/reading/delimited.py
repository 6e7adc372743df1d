"""CSV and TSV: cells as unchanged text, by column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Literal, NamedTuple

from fedmtl_client.reading import quoting
from fedmtl_client.reading.errors import MalformedError, counted, excerpt, require_once
from fedmtl_client.reading.records import Record, RecordFile, text_of
from fedmtl_client.tables import Table
from fedmtl_core.logs import get_logger
from fedmtl_core.tasks.labels import is_number

_LINE_BREAK = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Dialect:
    """The format variant of CSV and TSV files."""

    quoting: Literal["auto", "none", "minimal"] = "auto"
    """`minimal`: quotes around a cell are part of the format. `none`: quotes are part of the text. `auto` is `minimal`
    for CSV; for TSV it is decided from the file."""
    header: Literal["first_row", "none"] = "first_row"
    """The location of the column names; with `none`, columns are named by their numbers, from 1."""


@dataclass(frozen=True)
class _Layout:
    """The position of each column's cell in a row."""

    names: Sequence[str]
    """Column names in the order of the header."""
    width: int
    """Number of cells in each row."""
    offset: int = 0
    """Number of cells in a row before the first named one."""

    def place(self, name: str) -> int:
        """Return the index of a column's cell."""
        return self.names.index(name) + self.offset


class _Suspect(NamedTuple):
    """A record that a stray quote may have joined from several rows."""

    record: Record
    row: int
    """The record's index in the columns."""
    lines: list[list[str]]
    """The cells of each of its lines, read as a separate row."""


def read(
    open_file: Callable[[], BinaryIO], name: str, delimiter: str, wanted: Sequence[str], dialect: Dialect
) -> Table:
    """Read the wanted columns that a file has.

    Args:
        open_file: opens the file's bytes from the beginning.
        name: the file's name in the log.
        delimiter: the character between cells.
        wanted: names of columns.
        dialect: the file's format variant.

    Raises:
        MalformedError: the file isn't UTF-8, has rows with more or fewer cells than its header, or has stray quotes.
    """
    is_quoted = _is_quoted(open_file, name, delimiter, dialect)
    file = RecordFile(open_file, delimiter, is_quoted, has_header=dialect.header != "none")
    layout = _layout(file, name)
    require_once(wanted, layout.names)
    columns = _columns(file, name, layout, [one for one in wanted if one in layout.names])
    return Table(columns, available=[one or "(without a name)" for one in layout.names])


def _is_quoted(open_file: Callable[[], BinaryIO], name: str, delimiter: str, dialect: Dialect) -> bool:
    if dialect.quoting != "auto" or delimiter == ",":
        return dialect.quoting != "none"
    decision = quoting.decide(lambda: text_of(open_file), delimiter, has_header=dialect.header != "none")
    if decision.reason:
        value = "minimal" if decision.is_quoted else "none"
        get_logger().info("data.quoting_decided", file=name, quoting=value, reason=decision.reason)
    return decision.is_quoted


def _layout(file: RecordFile, name: str) -> _Layout:
    """Return the columns of the header, and the position of their cells in the rows.

    Raises:
        MalformedError: there is no header.
    """
    first = file.first()
    if first is None:
        raise MalformedError("the file is empty: expected " + ("a header" if file.has_header else "rows"))
    names = first.cells
    if not file.has_header:
        return _Layout([str(number) for number in range(1, len(names) + 1)], len(names))
    if unnamed := [place for place, cell in enumerate(names, 1) if not cell]:
        get_logger().info("data.columns_without_name_ignored", file=name, columns=unnamed)
    row = next(file.rows(), None)
    width = len(row.cells) if row else len(names)
    if width == len(names) - 1 and not names[-1]:
        return _Layout(names[:-1], width)  # only the header ends with a delimiter
    if width == len(names) + 1 and (offset := _extra_cell(file, width)) is not None:
        dropped = "first cell of each row: its number" if offset else "last cell of each row: empty"
        get_logger().warning("data.extra_column_dropped", file=name, columns=len(names), dropped=dropped)
        return _Layout(names, width, offset)
    return _Layout(names, len(names))


def _extra_cell(file: RecordFile, width: int) -> int | None:
    """Return the offset of the named cells in rows with one more cell than the header; None if it isn't certain.

    It is 0 if every row ends with a delimiter, and 1 if every row begins with its number, as in files of R's
    `write.table`.
    """
    is_empty = has_numbers = True
    numbers: list[int] = []
    for record in file.rows():
        cells = record.cells
        if len(cells) != width:
            return None
        is_empty = is_empty and not cells[-1]
        has_numbers = has_numbers and _is_row_number(cells[0])
        if has_numbers:
            numbers.append(int(cells[0]))
        if not (is_empty or has_numbers):
            return None
    is_numbered = has_numbers and (_count_up(numbers) or (_are_distinct(numbers) and file.rows_are_named()))
    return None if is_empty == is_numbered else int(is_numbered)


def _is_row_number(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) < 20


def _count_up(numbers: Sequence[int]) -> bool:
    return len(numbers) > 1 and all(after == before + 1 for before, after in pairwise(numbers))


def _are_distinct(numbers: Sequence[int]) -> bool:
    """Whether no number repeats: R keeps the row names when rows are sampled or shuffled."""
    return len(set(numbers)) == len(numbers)


def _columns(file: RecordFile, name: str, layout: _Layout, wanted: Sequence[str]) -> Mapping[str, list[str]]:
    columns: dict[str, list[str]] = {one: [] for one in wanted}
    places = [(column.append, layout.place(one)) for one, column in columns.items()]
    width = layout.width
    suspects: list[_Suspect] = []
    for record in file.rows():
        first, last, cells = record
        if len(cells) != width:
            if len(cells) == 1 and not cells[0].strip():
                continue  # a line of spaces
            raise MalformedError(_other_width(record, layout, file))
        if first != last and wanted and (lines := _rows_within(record, width, file.delimiter)):
            suspects.append(_Suspect(record, len(columns[wanted[0]]), lines))
        for append, place in places:
            append(cells[place])
    if suspects:
        _require_no_swallowed_rows(suspects, columns, layout, file.delimiter)
        get_logger().warning("data.multi_line_cells", file=name, rows=len(suspects), first=suspects[0].record.place)
    return columns


def _other_width(record: Record, layout: _Layout, file: RecordFile) -> str:
    """Return the error message for a row with too many or too few cells."""
    count = len(record.cells)
    shape = f"in the header ({', '.join(layout.names)[:100]})" if file.has_header else "in the first row"
    what = "comma" if file.delimiter == "," else "tab"
    if count < layout.width:
        advice = f"Complete the row, or look for a missing quote or {what}"
    elif count == layout.width + 1 and not record.cells[-1] and _is_row_number(record.cells[0]):
        advice = (
            f"If rows begin with their numbers, name this column in the header; if they end with an extra {what}, "
            f"remove it"
        )
    elif file.is_quoted:
        advice = (
            f"If a {what} belongs to a text, put the text in quotes. If every row has an additional column, "
            f"such as row numbers, name it in the header"
        )
    else:
        advice = f"A text can't contain a {what} in a file without quoting (see data.quoting)"
    return (
        f"{record.place}: expected {counted(layout.width, 'field')}, as {shape}, found {count:,}: "
        f"{excerpt(file.delimiter.join(record.cells))}. {advice}"
    )


def _rows_within(record: Record, width: int, delimiter: str) -> list[list[str]]:
    """Return the lines of a record as separate rows; empty if a line can't be a row."""
    rows = [line.split(delimiter) for line in _LINE_BREAK.split(delimiter.join(record.cells))]
    fits = len(rows) == record.last_line - record.first_line + 1 and all(len(cells) == width for cells in rows)
    return rows if fits else []


def _require_no_swallowed_rows(
    suspects: Iterable[_Suspect], columns: Mapping[str, Sequence[str]], layout: _Layout, delimiter: str
) -> None:
    """Check that no stray quote joins several rows into one.

    A quote is stray if each line of the record is a complete row, and the lines' values in a column other than the
    quoted cell's look like those of rows. These values occur in other rows, or they are numbers in a column of numbers
    that don't all repeat.

    Raises:
        MalformedError: a quote joins rows.
    """
    counts = {name: Counter(values) for name, values in columns.items()}
    measures = {
        name
        for name, values in columns.items()
        if len(values) > 1 and 1 in counts[name].values() and all(map(_is_measure, values))
    }
    for record, row, lines in suspects:
        for name, values in columns.items():
            place = layout.place(name)
            if _LINE_BREAK.search(record.cells[place]):
                continue
            inner = [cells[place] for cells in lines]
            are_known = all(counts[name][value] > (value == values[row]) for value in inner)
            if are_known or (name in measures and all(map(_is_measure, inner))):
                raise MalformedError(
                    f"{record.place}: a quote at the beginning of a cell joins {len(lines)} lines into one row, but "
                    f"each line is a complete row: {excerpt(delimiter.join(lines[0]))}. If the quote is part of the "
                    f"text, quote the text and double the quote, or set data.quoting to none"
                )


def _is_measure(cell: str) -> bool:
    """Whether a cell is a number without leading white space, which usually follows a comma in a text."""
    return is_number(cell) and not cell[0].isspace()
