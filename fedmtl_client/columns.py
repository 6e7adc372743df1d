"""All columns of files whose columns aren't known yet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmtl_client.reading import Dialect, read_files
from fedmtl_client.tables import Table
from fedmtl_core.errors import ConfigError, DataError, first_line
from fedmtl_core.tasks.labels import listing

_WITHOUT_NAME = "(without a name)"
_SEPARATORS = {";": "a semicolon", "|": "a vertical bar", "\t": "a tab"}


@dataclass(frozen=True)
class Columns(Table):
    """All columns of files that can be used."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    """By name, why a column of the files isn't among them."""

    @property
    def listing(self) -> str:
        """The names of the columns, and of those that are left out, with the reasons."""
        reasons = [f"{name!r} is left out: {reason}" for name, reason in self.left_out.items()]
        return "; ".join([", ".join(self.columns), *reasons])


def read_columns(address: str) -> Columns:
    """Every column of the files at an address; CSV and TSV files need a header.

    Columns without a name, with a name that occurs twice, or with a value in some rows only are left out.

    Args:
        address: a file, a folder, a pattern or a URL.

    Raises:
        DataError: there is no such file, it can't be read, has no rows, or has another separator.
    """
    try:
        names = read_files(address, [], [], Dialect()).available
        left_out = {
            name: f"{names.count(name)} columns have this name; rename all but one"
            for name in names
            if names.count(name) > 1 and name != _WITHOUT_NAME
        }
        wanted = [name for name in dict.fromkeys(names) if name not in left_out and name != _WITHOUT_NAME]
        _require_separator(address, names)
        if not wanted:
            raise DataError(f"{address} has no column with a name of its own")
        return _together(address, wanted, left_out)
    except FileNotFoundError:
        raise DataError(f"there is no file {address!r} (looked for {Path(address).absolute()})") from None


def is_delimited(address: str) -> bool:
    """Whether an address names CSV or TSV files, compressed or not."""
    return re.search(r"\.(csv|tsv)(\.[a-z0-9]+)?$", address, re.IGNORECASE) is not None


def require_header(file: str, column: str, labels: Sequence[str]) -> None:
    """Check that the first line of a CSV or TSV file has the names of its columns.

    Args:
        file: the file's address.
        column: the name of its label column.
        labels: the labels in the file.

    Raises:
        ConfigError: the name of the label column is one of the labels.
    """
    if column in labels and is_delimited(file):
        raise ConfigError(
            f"{file}: its first line looks like a row, not like the names of the columns: {column!r} is also one of "
            f"the labels ({listing(labels)}). Add a line with names, or give --label-column {column} if that is the "
            "column's name. For rows without a header see tasks.NAME.data.header"
        )


def _require_separator(address: str, names: Sequence[str]) -> None:
    """Check that the header of a CSV or TSV file isn't one name with another separator in it."""
    if len(names) != 1 or not is_delimited(address):
        return
    for separator, name in _SEPARATORS.items():
        if separator in names[0]:
            advice = "name the file .tsv" if separator == "\t" else "save it with commas"
            raise DataError(f"{address} has {name} between its columns, and a .csv file has commas: {advice}")
    if "," in names[0]:
        raise DataError(f"{address} has a comma between its columns, and a .tsv file has tabs: name the file .csv")


def _together(address: str, wanted: list[str], left_out: dict[str, str]) -> Columns:
    """The wanted columns; one by one if they can't be read together, without those that can't be read at all."""
    try:
        whole = read_files(address, wanted, [], Dialect())
        return Columns(whole.columns, whole.class_names, wanted, left_out)
    except DataError as error:
        tables: list[Table] = []
        for name in wanted:
            try:
                table = read_files(address, [name], [], Dialect())
            except DataError as reason:
                left_out[name] = first_line(reason)
            else:
                tables += [table] if name in table.columns else []
        if not tables:
            raise error from None
    return Columns(
        {name: values for table in tables for name, values in table.columns.items()},
        {name: names for table in tables for name, names in table.class_names.items()},
        wanted,
        left_out,
    )
