"""Checks of what options and persons say of a task, against its rows. Each raises `ValueError` or `ConfigError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedmtl_client.columns import Columns
from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks.labels import LabelNames
from fedmtl_core.tasks.spec import METRICS_OF, TaskSpec


def require_columns(task: str, tables: Sequence[tuple[str, Columns]], columns: Sequence[str]) -> None:
    """Check that every file of a task has the columns."""
    for file, table in tables:
        for column in columns:
            if column not in table.columns:
                raise ValueError(
                    f"the task {task!r} needs the column {column!r}, and {file} has {table.listing}; rename the "
                    "column in the file, or name another column"
                )


def require_text_columns(
    task: str, tables: Sequence[tuple[str, Columns]], columns: Sequence[str], label: str | None
) -> None:
    """Check that every file has the text columns, and that none of them is the label column."""
    if label in columns:
        raise ValueError(f"{label!r} is the label column; a text column has to be another one")
    require_columns(task, tables, columns)


def require_spec(
    name: str, type_: str, label: str | None, labels: Sequence[str] = (), metrics: Sequence[str] = ()
) -> None:
    """Check that labels and metrics suit a type."""
    TaskSpec(name, type_, ("text",), label or "" if type_ != "masked_lm" else "", tuple(labels), tuple(metrics))


def require_every_label(labels: Sequence[str], cells: Sequence[object]) -> None:
    """Check that every cell is one of the labels."""
    names = LabelNames(tuple(labels))
    for cell in dict.fromkeys(cells):
        names.number_of(cell)


def require_usable_options(name: str, type_: str, given: Mapping[str, str]) -> None:
    """Check that no option was given that a type doesn't use.

    Raises:
        ConfigError: an option was given in vain.
    """
    unused = {"classification": (), "regression": ("--labels",), "masked_lm": ("--labels", "--label-column")}[type_]
    for option in unused:
        if option in given:
            what = "labels" if option == "--labels" else "label column"
            raise ConfigError(
                f"{option}: the task {name!r} is a {type_} task, which has no {what}; leave {option} out, or give "
                f"another --type"
            )


def type_of(text: str) -> str:
    """A built-in type, as it is."""
    if text not in METRICS_OF:
        raise ValueError(f"expected one of {', '.join(METRICS_OF)}, got {text!r}")
    return text


def column_of(text: str) -> str:
    """A column's name, without surrounding white space."""
    if not text.strip():
        raise ValueError("expected the name of a column, got an empty text")
    return text.strip()
