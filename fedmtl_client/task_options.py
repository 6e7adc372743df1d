"""Options of the form `[TASK=]VALUE`, which say one fact of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from fedmtl_core.errors import ConfigError

TextColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--text-columns",
        metavar="[TASK=]COLUMN[,COLUMN]",
        help="The column of the text, or the two columns of a pair of texts.",
        show_default=False,
    ),
]
LabelColumn = Annotated[
    list[str] | None,
    typer.Option("--label-column", metavar="[TASK=]COLUMN", help="The column of the label.", show_default=False),
]


def by_task(option: str, values: Sequence[str], tasks: Sequence[str]) -> Mapping[str, str]:
    """The values of an option, by task.

    Args:
        option: its name, for messages.
        values: as they were given.
        tasks: the names of all tasks; with one task, values need no name.

    Raises:
        ConfigError: a value names no task, or a task has two values.
    """
    found: dict[str, str] = {}
    for given in values:
        task, equals, value = given.partition("=")
        if not equals or task not in tasks:
            if len(tasks) != 1:
                raise ConfigError(f"{option}: expected TASK=VALUE with a task of {', '.join(tasks)}, got {given!r}")
            task, value = tasks[0], given
        if task in found:
            raise ConfigError(f"{option}: given twice for the task {task!r}")
        found[task] = value
    return found


def as_list(text: str) -> tuple[str, ...]:
    """The names in a text, with commas between them.

    Raises:
        ValueError: a name is empty or occurs twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise ValueError(f"expected different names with commas between them, got {text!r}")
    return names


def as_text_columns(text: str) -> tuple[str, ...]:
    """The names of one text column, or of the two columns of a pair.

    Raises:
        ValueError: a name is empty or occurs twice, or there are more than two.
    """
    names = as_list(text)
    if len(names) > 2:
        raise ValueError(f"expected 1 or 2 text columns, got {len(names)}: {text!r}")
    return names
