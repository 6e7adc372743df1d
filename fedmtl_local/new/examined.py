"""From the files of a task to the task: what its options say, and proposals for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import typer

from fedmtl_client import proposals
from fedmtl_client.client_file import NewTask
from fedmtl_client.columns import Columns, read_columns, require_header
from fedmtl_client.label_cells import LeftOut, declared_names, label_cells, left_out, missing_words
from fedmtl_client.task_options import as_list, as_text_columns
from fedmtl_core.errors import ConfigError, DataError
from fedmtl_core.identifiers import name_some
from fedmtl_core.tasks.spec import METRICS_OF
from fedmtl_local.new import checks
from fedmtl_local.new.entries import Entry
from fedmtl_local.new.questions import Questions

_EXAMPLES = 5


@dataclass(frozen=True)
class Source:
    """The rows of one entry."""

    entry: Entry
    train: Columns
    validation: Columns | None

    @property
    def tables(self) -> Sequence[tuple[str, Columns]]:
        """Each file with its rows."""
        rest = [(self.entry.validation, self.validation)] if self.entry.validation and self.validation else []
        return [(self.entry.train, self.train), *rest]


@dataclass(frozen=True)
class ExaminedTask:
    """A task with its rows."""

    task: NewTask
    sources: Sequence[Source]
    drop_labels: tuple[str, ...]
    """The cells that stand for no label; their rows are left out."""


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
        ConfigError: an option's value doesn't fit the rows or the type, or a fact is missing.
    """
    tables = [one for source in sources for one in source.tables]
    _introduce(name, tables[0], questions)
    label = None if given.get("--type") == "masked_lm" else _label_column(name, tables, given, questions)
    texts = _text_columns(name, tables, label, given, questions)
    rows = [one for _, one in tables]
    cells = [] if label is None else label_cells(rows, label)
    declared = declared_names(rows, label) if label else ()
    implied = "classification" if "--labels" in given else None
    type_ = questions.find(
        f"{name}: type ({', '.join(METRICS_OF)})",
        checks.type_of,
        option="--type",
        given=given.get("--type", implied),
        proposed="masked_lm" if label is None else proposals.propose_type(cells, declared),
    )
    checks.require_usable_options(name, type_, given)
    labels: tuple[str, ...] = ()
    if type_ == "classification":
        labels = _labels(name, label or "", cells, declared, given, questions)
        if "--label-column" not in given:
            require_header(tables[0][0], label or "", labels)
    metrics = questions.find(
        f"{name}: metrics, the main one first",
        as_list,
        option="--metrics",
        given=given.get("--metrics"),
        proposed=proposals.propose_metrics(type_, labels),
        check=lambda metrics: checks.require_spec(name, type_, label, labels, metrics),
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
    missing = left_out(rows, task.label_column, labels) if task.label_column else LeftOut(0, ())
    _tell_missing(name, missing, cells, labels)
    return ExaminedTask(task, sources, missing.cells)


def _introduce(name: str, first: tuple[str, Columns], questions: Questions) -> None:
    """Say which columns the first file of a task has."""
    file, table = first
    if questions.asks:
        typer.echo(f"{name}: {file} has {table.num_rows:,} rows with the columns {', '.join(table.columns)}")
    for column, reason in table.left_out.items():
        typer.echo(f"{name}: the column {column!r} is left out: {reason}")


def _tell_missing(name: str, missing: LeftOut, cells: Sequence[object], labels: Sequence[str]) -> None:
    if missing.num_rows:
        spelled = ", ".join(repr(cell) for cell in missing.cells if cell)
        words = f" ({spelled})" if spelled else ""
        typer.echo(f"{name}: {missing.num_rows:,} rows have no label{words}; drop_labels leaves them out")
    for word, count in missing_words(cells).items():
        if word in labels:
            typer.echo(
                f"{name}: {word!r} in {count:,} rows is one of the labels; if it stands for no label, name the labels "
                "without it (--labels)"
            )


def _label_column(
    name: str, tables: Sequence[tuple[str, Columns]], given: Mapping[str, str], questions: Questions
) -> str | None:
    file, table = tables[0]
    likely = proposals.likely_label_columns(table)
    reason = f"no column of {file} looks like labels; its columns are {table.listing}"
    if len(table.columns) == 1:
        advice = f"For texts without labels, give --type {name}=masked_lm"
        if table.left_out:
            advice = "Correct the columns that are left out"
        reason = f"{file} has one column ({table.listing}), and a task needs a text column and a label column. {advice}"
        if "--label-column" not in given:
            raise ConfigError(f"--label-column: needed for the task {name!r}: {reason}")
    if len(likely) > 1 and "--label-column" not in given:
        others = f"{', '.join(likely[1:])} {'is' if len(likely) == 2 else 'are'} as likely"
        typer.echo(f"{name}: the label column {likely[0]} is proposed, and {others} (--label-column)")
    return questions.find(
        f"{name}: column of the label",
        checks.column_of,
        option="--label-column",
        given=given.get("--label-column"),
        proposed=likely[0] if likely else None,
        why_needed=f"the task {name!r}: {reason}",
        check=lambda column: checks.require_columns(name, tables, [column]),
    )


def _text_columns(
    name: str,
    tables: Sequence[tuple[str, Columns]],
    label: str | None,
    given: Mapping[str, str],
    questions: Questions,
) -> tuple[str, ...]:
    file, table = tables[0]
    return questions.find(
        f"{name}: column of the text, or two columns of a pair",
        as_text_columns,
        option="--text-columns",
        given=given.get("--text-columns"),
        proposed=proposals.propose_text_columns(table, label) or None,
        why_needed=f"no column of {file} looks like text; its columns are {table.listing}",
        check=lambda columns: checks.require_text_columns(name, tables, columns, label),
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
    is_usable = proposals.may_be_classes(len(found), len(cells)) or len(declared) > 1
    different = f"{len(found):,} different value" + ("" if len(found) == 1 else "s")

    def check(labels: tuple[str, ...]) -> None:
        checks.require_spec(name, "classification", column, labels)
        if questions.asks:  # else the dry run finds all of them
            checks.require_every_label(labels, cells)

    return questions.find(
        f"{name}: labels, in the order of the head's outputs",
        as_list,
        option="--labels",
        given=given.get("--labels"),
        proposed=found if is_usable else None,
        why_needed=(
            f"the task {name!r}: its label column {column!r} has {different} ({name_some(found, _EXAMPLES)}), and "
            f"classes are proposed from 2 to {proposals.MAX_CLASSES}, or to {proposals.MAX_REPEATED_CLASSES} that "
            f"have {proposals.ROWS_OF_A_LABEL} rows on average. Name another column with --label-column, or every "
            "label with --labels"
        ),
        check=check,
    )
