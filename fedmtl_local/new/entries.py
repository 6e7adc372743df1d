"""The option of `fedmtl-local new` that names a task, its sites and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmtl_core.errors import ConfigError, InvalidRequestError
from fedmtl_core.identifiers import require_identifier

TASK_FORM = "TASK[@SITE,…]=FILE[,VALIDATION]"


@dataclass(frozen=True)
class Entry:
    """The rows of one task at one site, or at several sites that each use a part of them."""

    task: str
    sites: tuple[str, ...]
    train: str
    validation: str | None
    """None if evaluation rows are to be split off."""


def parse_entry(text: str) -> Entry:
    """An entry of the form `TASK_FORM`; without a site, the site is `TASK-site`.

    Raises:
        ConfigError: the text has another form, or a name can't be used.
    """
    name, equals, files = text.partition("=")
    task, at, sites = name.partition("@")
    if not equals or not files:
        raise ConfigError(f"--task: expected {TASK_FORM}, such as tickets@desk=train.csv,dev.csv, got {text!r}")
    train, comma, validation = files, "", ""
    if not Path(files).exists():  # a file's name may have a comma
        train, comma, validation = files.partition(",")
    if "," in validation or (comma and not (train and validation)):
        raise ConfigError(f"--task: expected one file, or two with a comma between them, got {files!r}")
    named = tuple(sites.split(",")) if at else (default_site(task),)
    if len(set(named)) < len(named):
        raise ConfigError(f"--task: expected different sites with commas between them, got {sites!r}")
    return Entry(require_task(task), tuple(map(require_site, named)), train, validation or None)


def default_site(task: str) -> str:
    """The site of a task that names none."""
    return f"{task[:59]}-site"


def require_task(name: str) -> str:
    """A task's name, as it is.

    Raises:
        ConfigError: no task can have the name.
    """
    if "." in name:
        raise ConfigError(f"--task: a task's name can't have a '.', got {name!r}")
    return _identifier("a task's name", name)


def require_site(name: str) -> str:
    """A site's name, as it is: it becomes a client id and the name of a folder.

    Raises:
        ConfigError: no client or no folder can have the name.
    """
    if name in (".", ".."):
        raise ConfigError(f"--task: a site's name can't be '.' or '..', got {name!r}")
    return _identifier("a site's name", name)


def _identifier(what: str, name: str) -> str:
    try:
        return require_identifier(what, name)
    except InvalidRequestError as error:
        raise ConfigError(f"--task: {error}") from None
