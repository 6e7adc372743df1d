"""The tasks, sites and files that a person names at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fedmtl_client.columns import read_columns
from fedmtl_core.errors import ConfigError
from fedmtl_local.new.entries import TASK_FORM, Entry, default_site, require_site, require_task
from fedmtl_local.new.questions import Questions

_OPTION = "--task"


def asked_entries(questions: Questions) -> list[Entry]:
    """Ask for tasks until a person names no further one.

    Raises:
        ConfigError: nobody can be asked.
    """
    if not questions.asks:
        raise ConfigError(f"{_OPTION}: needed, once for each task and site, as {TASK_FORM}")
    entries: list[Entry] = []
    name = questions.find("Name of the first task", require_task, option=_OPTION)
    while name:
        entries += _entries_of(name, questions)
        check = partial(_require_new, [one.task for one in entries])
        question = "Name of another task (empty: no more)"
        name = questions.find(question, require_task, option=_OPTION, proposed="", check=check)
    return entries


def _entries_of(task: str, questions: Questions) -> list[Entry]:
    """The rows of one task, site by site."""
    entries: list[Entry] = []
    question = f"{task}: name of the site that has its rows"
    site = questions.find(question, require_site, option=_OPTION, proposed=default_site(task))
    while site:
        train = questions.find(f"{task} at {site}: file of training rows", _readable, option=_OPTION)
        question = f"{task} at {site}: file of evaluation rows (empty: split off a fifth)"
        validation = questions.find(question, _readable, option=_OPTION, proposed="")
        entries.append(Entry(task, (site,), train, validation or None))
        question = f"{task}: name of another site (empty: no more)"
        check = partial(_require_new, [one for entry in entries for one in entry.sites])
        site = questions.find(question, require_site, option=_OPTION, proposed="", check=check)
    return entries


def _readable(file: str) -> str:
    """A file's name, if the file can be read."""
    read_columns(file)
    return file


def _require_new(names: Sequence[str], name: str) -> None:
    if name in names:
        raise ValueError(f"{name} has been named already; expected one other than {', '.join(names)}")
