"""The section of a task in the file that `fedmtl-client init` writes, from options and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer

from fedmtl_client.client_file import NewTask, TaskFiles
from fedmtl_client.columns import Columns, read_columns, require_header
from fedmtl_client.label_cells import left_out
from fedmtl_client.reading.remote import is_url
from fedmtl_client.row_copies import split_copies
from fedmtl_client.server_tasks import ServerTask, described, require_columns
from fedmtl_client.task_options import as_text_columns
from fedmtl_core.errors import ConfigError

_PLACEHOLDERS = TaskFiles("TRAIN_FILE", "VALIDATION_FILE")


@dataclass(frozen=True)
class TaskSection:
    """A task and its rows."""

    task: NewTask
    files: TaskFiles
    copies: Mapping[Path, str] = field(default_factory=dict)
    """The files of split rows that are still to be written, with their content."""


def section(
    task: ServerTask, file: Path, data: str | None, texts: str | None, label_column: str | None, *, overwrites: bool
) -> TaskSection:
    """Return a task's section.

    Args:
        task: the server's task.
        file: the client's file; files of split rows are written beside it.
        data: the task's value of `--data`; placeholders stand for the files if None.
        texts: the task's value of `--text-columns`; proposed if None.
        label_column: the task's value of `--label-column`; proposed if None.
        overwrites: whether files of split rows may exist.

    Raises:
        ConfigError: an option's value is wrong, or a column has to be given.
        DataError: a file can't be read, or lacks a column.
    """
    try:
        text_columns = as_text_columns(texts) if texts is not None else ()
    except ValueError as error:
        raise ConfigError(f"--text-columns: {error}") from None
    if data is None:
        return TaskSection(described(task, None, text_columns, label_column), _PLACEHOLDERS)
    files = [data] if Path(data).exists() else data.split(",")  # a file's name may have a comma
    if len(files) > 2 or not all(files):
        raise ConfigError(
            f"--data: expected the file of training rows, or also that of evaluation rows after a comma, got {data!r} "
            f"for the task {task.name!r}"
        )
    tables = [read_columns(one) for one in files]
    new = described(task, tables[0], text_columns, label_column)
    for one, table in zip(files, tables, strict=True):
        require_columns(new, table, one)
    if new.label_column is not None and label_column is None:
        require_header(files[0], new.label_column, task.labels)
    drop_labels = _drop_labels(task, tables, new.label_column)
    if len(files) == 2:
        train, validation = (one if is_url(one) else str(Path(one).absolute()) for one in files)
        return TaskSection(new, TaskFiles(train, validation, drop_labels))
    start = file.absolute().with_name(f"{file.stem}-{task.name}")
    paths = [Path(f"{start}-{split}.jsonl") for split in ("train", "validation")]
    for path in paths:
        if path.exists() and not overwrites:
            raise ConfigError(f"--data: {path}, a file of split rows, exists; overwrite it with --force")
    copies = dict(zip(paths, split_copies(new, tables[0], files[0]), strict=True))
    return TaskSection(new, TaskFiles(str(paths[0]), str(paths[1]), drop_labels), copies)


def _drop_labels(task: ServerTask, tables: Sequence[Columns], label_column: str | None) -> tuple[str, ...]:
    if label_column is None:
        return ()
    missing = left_out(tables, label_column, task.labels)
    if missing.num_rows:
        typer.echo(f"{task.name}: {missing.num_rows:,} rows have no label; drop_labels leaves them out")
    return missing.cells
