"""All columns of files whose columns aren't known yet."""

from __future__ import annotations

from pathlib import Path

from fedmtl_client.reading import Dialect, read_files
from fedmtl_client.tables import Table
from fedmtl_core.errors import DataError


def read_columns(address: str) -> Table:
    """Every column of the files at an address; CSV and TSV files need a header.

    Columns without a name, with a name that occurs twice, or with a value in some rows only are left out.

    Args:
        address: a file, a folder, a pattern or a URL.

    Raises:
        DataError: there is no such file, it can't be read, or it has no rows.
    """
    try:
        names = read_files(address, [], [], Dialect()).available
        wanted = [name for name in dict.fromkeys(names) if names.count(name) == 1 and name != "(without a name)"]
        if not wanted:
            raise DataError(f"{address} has no column with a name of its own")
        return _together(address, wanted)
    except FileNotFoundError:
        raise DataError(f"there is no file {address!r} (looked for {Path(address).absolute()})") from None


def _together(address: str, wanted: list[str]) -> Table:
    """The wanted columns; one by one if they can't be read together, without those that can't be read at all."""
    try:
        return read_files(address, wanted, [], Dialect())
    except DataError as error:
        tables = [table for name in wanted if (table := _alone(address, name)) is not None]
        if not tables:
            raise error from None
    return Table(
        {name: values for table in tables for name, values in table.columns.items()},
        {name: names for table in tables for name, names in table.class_names.items()},
        available=wanted,
    )


def _alone(address: str, name: str) -> Table | None:
    try:
        table = read_files(address, [name], [], Dialect())
    except DataError:
        return None
    return table if name in table.columns else None
