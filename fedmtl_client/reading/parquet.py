"""Parquet: the wanted columns, with the class names that the `datasets` library stores in the schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, BinaryIO

from fedmtl_client.reading.errors import MalformedError, require_once
from fedmtl_client.tables import Table, class_names_in

_DATASETS = b"huggingface"
"""Key of the features that `datasets` stores in a schema."""


def read(open_file: Callable[[], BinaryIO], wanted: Sequence[str], texts: Collection[str]) -> Table:
    """Read the wanted columns that a file has.

    Args:
        open_file: opens the file's bytes.
        wanted: names of columns.
        texts: the columns that must contain text.

    Raises:
        MalformedError: a text column has another type.
    """
    import pyarrow.parquet

    with open_file() as file:
        whole = file if file.seekable() else pyarrow.BufferReader(file.read())
        parquet = pyarrow.parquet.ParquetFile(whole)
        schema = parquet.schema_arrow
        require_once(wanted, schema.names)
        there = [name for name in wanted if name in schema.names]
        for name in there:
            if name in texts and parquet.metadata.num_rows and not _is_text(schema.field(name).type):
                raise MalformedError(f"column {name!r}: expected text, found {schema.field(name).type}")
        columns: dict[str, list[object]] = {name: [] for name in there}
        for batch in parquet.iter_batches(columns=there) if there else ():
            for name, values in columns.items():
                values += batch.column(name).to_pylist()
    names = _class_names((schema.metadata or {}).get(_DATASETS, b"{}"))
    return Table(columns, {name: names[name] for name in there if name in names}, available=schema.names)


def _is_text(type_: Any) -> bool:
    """Whether a column's values are strings, or all null."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_dictionary(type_):
        return _is_text(type_.value_type)
    return bool(
        kinds.is_string(type_) or kinds.is_large_string(type_) or kinds.is_string_view(type_) or kinds.is_null(type_)
    )


def _class_names(metadata: bytes) -> dict[str, tuple[str, ...]]:
    """Return the names of each column's `ClassLabel`, or of the items of a list of `ClassLabel`."""
    try:
        return class_names_in(json.loads(metadata)["info"]["features"])
    except (ValueError, LookupError, TypeError):  # not written by `datasets`
        return {}
