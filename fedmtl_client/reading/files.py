"""Reads the rows at an address, in any supported format."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import BinaryIO

from fedmtl_client.reading import delimited, json_rows, parquet
from fedmtl_client.reading.addresses import Part, find_parts
from fedmtl_client.reading.delimited import Dialect
from fedmtl_client.reading.errors import MalformedError
from fedmtl_client.tables import Table
from fedmtl_core.errors import DataError, first_line

_DELIMITERS = {"csv": ",", "tsv": "\t"}


def read_files(address: str, wanted: Sequence[str], texts: Collection[str], dialect: Dialect) -> Table:
    """Read the wanted columns of the files at an address, in the order of the files' names. Columns that no file has
    are omitted.

    Args:
        address: a file, a folder, a pattern or a URL.
        wanted: names of columns, or with `dialect.header: none` their numbers from 1.
        texts: the columns that must contain text.
        dialect: the format variant of CSV and TSV files.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a file can't be read, has errors, or doesn't match the others, or there are no rows.
    """
    wanted = list(dict.fromkeys(wanted))
    try:
        parts = find_parts(address)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{address} can't be read: {_reason(error)}") from None
    tables = [_read_part(part, wanted, texts, dialect) for part in parts]
    for part, table in zip(parts, tables, strict=True):
        _require_alike(parts[0], tables[0], part, table, dialect)
    whole = tables[0]
    for table in tables[1:]:
        for name, values in whole.columns.items():
            values.extend(table.columns[name])  # type: ignore[attr-defined]
    if whole.columns and not any(map(len, whole.columns.values())) and set(whole.columns) == set(wanted):
        raise DataError(f"{parts[0].name if len(parts) == 1 else address} has no rows")
    return whole


def _read_part(part: Part, wanted: Sequence[str], texts: Collection[str], dialect: Dialect) -> Table:
    if part.format not in _DELIMITERS and dialect != Dialect():
        raise DataError(f"data.quoting and data.header apply to CSV and TSV only; {part.name} is neither")
    try:
        with part.opened() as open_file:
            return _read_format(part, open_file, wanted, texts, dialect)
    except DataError:
        raise
    except MalformedError as error:
        reason = str(error)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:  # Arrow's errors are subclasses
        reason = _reason(error)
    except Exception as error:
        if part.is_local:
            raise
        reason = _reason(error)  # file systems behind URLs raise their own errors
    raise DataError(f"{part.name} can't be read as {part.format}: {reason}")


def _read_format(
    part: Part, open_file: Callable[[], BinaryIO], wanted: Sequence[str], texts: Collection[str], dialect: Dialect
) -> Table:
    if part.format in _DELIMITERS:
        return delimited.read(open_file, part.name, _DELIMITERS[part.format], wanted, dialect)
    if part.format == "parquet":
        return parquet.read(open_file, wanted, texts)
    return json_rows.read(open_file, wanted)


def _require_alike(first: Part, expected: Table, part: Part, table: Table, dialect: Dialect) -> None:
    """Check that a file has the columns and class names of the first file.

    Raises:
        DataError: the columns or class names differ.
    """
    for one, other, lacks in (
        (first, part, set(expected.columns) - set(table.columns)),
        (part, first, set(table.columns) - set(expected.columns)),
    ):
        if lacks:
            raise DataError(f"{other.name} has no column {min(lacks)!r}, which {one.name} has")
    if dialect.header == "none" and len(table.available) != len(expected.available):
        raise DataError(
            f"{part.name} has {len(table.available)} columns, {first.name} has {len(expected.available)}: without a "
            f"header, all files need the same number of columns"
        )
    if table.class_names != expected.class_names:
        raise DataError(
            f"{part.name} declares the class names {_listed(table)}, {first.name} declares {_listed(expected)}"
        )


def _listed(table: Table) -> str:
    return "; ".join(f"{name}: {', '.join(names)}" for name, names in table.class_names.items()) or "none"


def _reason(error: BaseException) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
