"""The tasks that a running server has, and how the columns of a file fit one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmtl_client import proposals
from fedmtl_client.client_file import NewTask
from fedmtl_client.columns import Columns
from fedmtl_core.errors import ConfigError, DataError, PermissionDeniedError
from fedmtl_core.tasks.spec import BUILT_IN, METRICS_OF

if TYPE_CHECKING:
    from fedmtl_client.api import FederationApi

PLACEHOLDER_COLUMN = "text"
OWN_MODULE = "your_module"
"""Stands for the module of a type that isn't built in."""


@dataclass(frozen=True)
class ServerTask:
    """A task as the server's training plan describes it."""

    name: str
    type: str
    """A built-in type, or the name of a plug-in's class."""
    labels: tuple[str, ...]
    """In the order of the head's outputs; empty where the type has no classes."""

    @property
    def is_built_in(self) -> bool:
        return self.type in BUILT_IN

    @property
    def is_labelled(self) -> bool:
        """Whether rows have a label; assumed of a plug-in's type."""
        return not self.is_built_in or BUILT_IN[self.type].is_labelled

    def __str__(self) -> str:
        return f"{self.name} ({self.type}{': ' if self.labels else ''}{', '.join(self.labels)})"


def tasks_of_server(api: FederationApi, wanted: Sequence[str] = ()) -> tuple[list[ServerTask], list[str]]:
    """The server's tasks with their types and labels: each is asked for a slice, whose header is read alone.

    Args:
        api: the client's connection.
        wanted: names of tasks; all that the client may have if empty.

    Returns:
        The tasks, and the names of those that the client may not have.

    Raises:
        ConfigError: the server has no task of a wanted name, or the client may have no task.
        RequestError: the server refuses the client, or can't be reached.
    """
    names = [task.task for task in api.get_status().tasks]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"--task: the server has the tasks {', '.join(names)}, got {name!r}")
    tasks: list[ServerTask] = []
    denied: list[str] = []
    for name in wanted or names:
        try:
            plan = api.get_plan(name)
        except PermissionDeniedError:
            if wanted or len(denied) == len(names) - 1:
                raise
            denied.append(name)
            continue
        if plan.task_type is None:
            raise ConfigError(f"the server doesn't say of which type the task {name!r} is: it is an older version")
        tasks.append(ServerTask(name, plan.task_type, plan.labels))
    return tasks, denied


def described(
    task: ServerTask, table: Columns | None, text_columns: Sequence[str] = (), label_column: str | None = None
) -> NewTask:
    """The section of a task in a client's file.

    Args:
        task: the server's.
        table: all columns of the training rows; None without a file, for placeholders.
        text_columns: those that were given; proposed if empty.
        label_column: the one that was given; proposed if None.

    Raises:
        ConfigError: a column has to be given, or doesn't suit the task.
    """
    label = None
    if label_column is not None and not label_column.strip():
        raise ConfigError(f"--label-column: expected the name of a column, got {label_column!r}")
    if task.is_labelled:
        label = label_column or ("label" if table is None else _label_column(task, table))
    texts = tuple(text_columns) or (PLACEHOLDER_COLUMN,)
    if table is not None and not text_columns:
        texts = proposals.propose_text_columns(table, label)
    if label_column is not None and not task.is_labelled:
        raise ConfigError(f"--label-column: the task {task.name!r} is a {task.type} task, which has no label column")
    if label in texts:
        raise ConfigError(f"--text-columns: {label!r} is the label column of the task {task.name!r}; name another one")
    if not texts or (task.is_labelled and label is None):
        option = "--label-column" if texts else "--text-columns"
        has = table.listing if table else ""
        raise ConfigError(f"{option}: needed for the task {task.name!r}, whose file has the columns {has}")
    # The plan doesn't name the server's metrics: a client that measures all of them has those of the server.
    metrics = [one for one in METRICS_OF.get(task.type, ()) if one != "f1" or len(task.labels) == 2]
    type_ = task.type if task.is_built_in else f"{OWN_MODULE}:{task.type}"
    return NewTask(task.name, type_, texts, label, task.labels, tuple(metrics))


def _label_column(task: ServerTask, table: Columns) -> str | None:
    matching = proposals.matching_label_column(table, task.labels) if task.labels else None
    return matching or proposals.propose_label_column(table)


def require_columns(task: NewTask, table: Columns, file: str) -> None:
    """Check that a file has a task's columns.

    Raises:
        DataError: it lacks one.
    """
    for column in (*task.text_columns, *([task.label_column] if task.label_column else [])):
        if column not in table.columns:
            raise DataError(f"{file} has no column {column!r}; its columns are {table.listing}")
