"""Records of a CSV or TSV file with their line numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TextIO

from fedmtl_client.reading.errors import MalformedError

if TYPE_CHECKING:
    from _csv import Reader

_LONGEST_CELL = 2**31 - 1
"""In characters; the default limit of the `csv` module is 131,072."""


class Record(NamedTuple):
    """One row of cells."""

    first_line: int
    """Line numbers start at 1."""
    last_line: int
    cells: list[str]

    @property
    def place(self) -> str:
        """The record's lines, for messages."""
        one = self.first_line == self.last_line
        return f"line {self.first_line:,}" if one else f"lines {self.first_line:,} to {self.last_line:,}"


@dataclass(frozen=True)
class RecordFile:
    """A file with records that can be read several times."""

    open: Callable[[], BinaryIO]
    """Opens the file's bytes from the beginning."""
    delimiter: str
    """The character between cells."""
    is_quoted: bool
    """Whether quotes around a cell are part of the format, and quotes inside are doubled."""
    has_header: bool

    def first(self) -> Record | None:
        """Return the header, or the first row of a file without a header."""
        return next(self._records(), None)

    def rows(self) -> Iterator[Record]:
        """Yield the records after the header, without blank lines.

        Raises:
            MalformedError: a quote is closed within a cell, or never closed, or the text isn't UTF-8.
        """
        return islice(self._records(), 1 if self.has_header else 0, None)

    def rows_are_named(self) -> bool:
        """Whether the header and the first cell of every row are quoted, as in files with row names that R's
        `write.table` writes."""
        if not (self.has_header and self.is_quoted):
            return False
        with text_of(self.open) as lines:
            numbered = enumerate(lines, 1)
            for count, record in enumerate(self._records()):
                line = next(line for number, line in numbered if number == record.first_line)
                cells = [_in_quotes(cell) for cell in record.cells]
                if count and not line.startswith(cells[0] + self.delimiter):
                    return False
                if not count and line.rstrip("\r\n") != self.delimiter.join(cells):
                    return False
        return True

    def _records(self) -> Iterator[Record]:
        with text_of(self.open) as lines:
            reader = cell_reader(lines, self.delimiter, self.is_quoted)
            first = 1
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise MalformedError(_stray_quote(error, first, reader.line_num)) from None
                if cells:
                    yield Record(first, reader.line_num, cells)
                first = reader.line_num + 1


def cell_reader(lines: Iterable[str], delimiter: str, is_quoted: bool) -> Reader:
    """Return a reader of cells that rejects stray quotes and accepts long cells."""
    csv.field_size_limit(_LONGEST_CELL)
    return csv.reader(
        lines, delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    )


def _in_quotes(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def _stray_quote(error: csv.Error, first: int, last: int) -> str:
    advice = (
        "Quote texts that contain quotes, and double the quotes inside; for a file without quoting, set data.quoting "
        "to none"
    )
    if "unexpected end" in str(error):
        return f"line {first:,}: the quote that opens a cell is never closed. {advice}"
    if "expected after" in str(error):
        where = "" if first == last else f" in line {first:,}"
        return f"line {last:,}: the quote that opens a cell{where} is closed before the cell ends. {advice}"
    return f"line {last:,}: {error}"


@contextmanager
def text_of(open_file: Callable[[], BinaryIO]) -> Iterator[TextIO]:
    """Open a file's text with unchanged line breaks.

    Raises:
        MalformedError: the file isn't UTF-8.
    """
    with io.TextIOWrapper(open_file(), encoding="utf-8-sig", newline="") as text:
        try:
            yield text
        except UnicodeDecodeError:
            with open_file() as file:
                for number, line in enumerate(file, 1):
                    decoded(line, number)
            raise MalformedError("expected UTF-8 text") from None


def decoded(line: bytes, number: int) -> str:
    """Decode a line, without a byte order mark in the first line.

    Raises:
        MalformedError: the line isn't UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        is_utf16 = number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "UTF-16" if is_utf16 else f"the byte 0x{line[error.start]:02x}"
        raise MalformedError(f"line {number:,}: expected UTF-8 text, found {found}; save the file as UTF-8") from None
