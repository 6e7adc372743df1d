"""From the files of a task to the task: what its options say, and proposals for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import typer

from fedmtl_client import proposals
from fedmtl_client.client_file import NewTask
from fedmtl_client.columns import read_columns
from fedmtl_client.tables import Table
from fedmtl_client.task_options import as_list
from fedmtl_core.errors import ConfigError, DataError
from fedmtl_core.identifiers import name_some
from fedmtl_core.tasks.labels import listing
from fedmtl_core.tasks.spec import METRICS_OF
from fedmtl_local.new.entries import Entry
from fedmtl_local.new.questions import Questions

_EXAMPLES = 5


@dataclass(frozen=True)
class Source:
    """The rows of one entry."""

    entry: Entry
    train: Table
    validation: Table | None

    @property
    def tables(self) -> Sequence[tuple[str, Table]]:
        """Each file with its rows."""
        rest = [(self.entry.validation, self.validation)] if self.entry.validation and self.validation else []
        return [(self.entry.train, self.train), *rest]


@dataclass(frozen=True)
class ExaminedTask:
    """A task with its rows."""

    task: NewTask
    sources: Sequence[Source]
    drops_empty_labels: bool
    """Whether rows without a label are left out."""


def read_source(entry: Entry) -> Source:
    """Read an entry's files.

    Raises:
        DataError: a file can't be read, or has no rows.
    """
    try:
        train = read_columns(entry.train)
        return Source(entry, train, read_columns(entry.validation) if entry.validation else None)
    except DataError as error:
        raise DataError(f"task {entry.task}: {error}") from None


def examine(name: str, sources: Sequence[Source], given: Mapping[str, str], questions: Questions) -> ExaminedTask:
    """A task, from its rows at all sites.

    Args:
        name: the task's.
        sources: its rows.
        given: the options' values for the task, by option.
        questions: finds what isn't given.

    Raises:
        ConfigError: an option's value doesn't fit the rows, or a fact is missing.
    """
    first, table = sources[0].tables[0]
    if questions.asks:
        typer.echo(f"{name}: {first} has {table.num_rows:,} rows with the columns {', '.join(table.columns)}")
    is_unlabelled = given.get("--type") == "masked_lm"
    label = None if is_unlabelled else _label_column(name, first, table, given, questions)
    texts = questions.find(
        f"{name}: column of the text, or two columns of a pair",
        as_list,
        option="--text-columns",
        given=given.get("--text-columns"),
        proposed=proposals.propose_text_columns(table, label) or None,
        why_needed=f"no column of {first} looks like text; its columns are {', '.join(table.columns)}",
    )
    _require_columns(name, sources, (*texts, *([label] if label else [])))
    cells = [] if label is None else list(chain(*(one.columns[label] for _, one in _tables(sources))))
    declared = table.class_names.get(label, ()) if label else ()
    type_ = questions.find(
        f"{name}: type ({', '.join(METRICS_OF)})",
        _type,
        option="--type",
        given=given.get("--type"),
        proposed="masked_lm" if label is None else proposals.propose_type(cells, declared),
    )
    labels = _labels(name, label or "", cells, declared, given, questions) if type_ == "classification" else ()
    metrics = questions.find(
        f"{name}: metrics, the main one first",
        as_list,
        option="--metrics",
        given=given.get("--metrics"),
        proposed=proposals.propose_metrics(type_, labels),
    )
    task = NewTask(
        name=name,
        type=type_,
        text_columns=texts,
        label_column=label if type_ != "masked_lm" else None,
        labels=labels,
        metrics=metrics,
        value_range=proposals.propose_value_range(cells) if type_ == "regression" else None,
    )
    missing = proposals.count_missing(cells, declared) if task.label_column else 0
    if missing:
        typer.echo(f"{name}: {missing:,} rows have no label; drop_labels leaves them out")
    return ExaminedTask(task, sources, drops_empty_labels=missing > 0)


def _label_column(name: str, file: str, table: Table, given: Mapping[str, str], questions: Questions) -> str | None:
    proposed = proposals.propose_label_column(table)
    columns = ", ".join(table.columns)
    reason = f"no column of {file} looks like labels; its columns are {columns}"
    if len(table.columns) == 1:
        reason = (
            f"{file} has one column ({columns}), and a task needs a text column and a label column. For texts without "
            f"labels, give --type {name}=masked_lm"
        )
        if not given.get("--label-column"):
            raise ConfigError(f"--label-column: needed for the task {name!r}: {reason}")
    return questions.find(
        f"{name}: column of the label",
        str.strip,
        option="--label-column",
        given=given.get("--label-column"),
        proposed=proposed,
        why_needed=f"the task {name!r}: {reason}",
    )


def _labels(
    name: str,
    column: str,
    cells: Sequence[object],
    declared: Sequence[str],
    given: Mapping[str, str],
    questions: Questions,
) -> tuple[str, ...]:
    found = proposals.propose_labels(cells, declared)
    is_usable = 2 <= len(found) <= proposals.MAX_CLASSES or len(declared) > 1
    different = f"{len(found):,} different value" + ("" if len(found) == 1 else "s")
    return questions.find(
        f"{name}: labels, in the order of the head's outputs",
        as_list,
        option="--labels",
        given=given.get("--labels"),
        proposed=found if is_usable else None,
        why_needed=(
            f"the task {name!r}: its label column {column!r} has {different} ({name_some(found, _EXAMPLES)}), and "
            f"classes are proposed from 2 to {proposals.MAX_CLASSES}. Name another column with --label-column, or "
            "every label with --labels"
        ),
    )


def _type(text: str) -> str:
    if text not in METRICS_OF:
        raise ValueError(f"expected one of {', '.join(METRICS_OF)}, got {text!r}")
    return text


def _tables(sources: Sequence[Source]) -> list[tuple[str, Table]]:
    return [one for source in sources for one in source.tables]


def _require_columns(name: str, sources: Sequence[Source], columns: Sequence[str]) -> None:
    for file, table in _tables(sources):
        for column in columns:
            if column not in table.columns:
                raise ConfigError(
                    f"the task {name!r} needs the column {column!r}, and {file} has {listing(list(table.columns))}"
                )
