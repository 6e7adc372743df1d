"""All runs of a folder or a database: finding them by their histories, and removing them. Needs no PyTorch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedmtl_core.errors import StoreError, UserError
from fedmtl_core.json_types import JsonObject
from fedmtl_server.storage.lock import is_held
from fedmtl_server.storage.missing import lacks_history, missing_history
from fedmtl_server.storage.paths import BEGINNING_FILE, HISTORY_FILE, LOCK_FILE, RUN_FILE, SERVER_FILE

if TYPE_CHECKING:
    from fedmtl_server.storage.history import History
    from fedmtl_server.storage.records import RunRecord

_ID_FILES = (RUN_FILE, BEGINNING_FILE, SERVER_FILE)
"""Files with the id of the run in a folder."""


@dataclass(frozen=True)
class Place:
    """A run, its database and its folder."""

    database: str | Path
    run: RunRecord
    folder: Path
    num_others: int
    """The number of other runs in its database."""
    last_training_round: int | None = None
    """The round after which its training ended; None if it hasn't."""

    @property
    def state(self) -> str:
        """`finished` or `running`; if no server is serving it, `stopped`, or `never began` if it can't be resumed."""
        if self.run.state == "finished":
            return "finished"
        if is_held(self.folder):
            return "running"
        return "never began" if (self.folder / BEGINNING_FILE).is_file() else "stopped"

    @property
    def started_from(self) -> JsonObject | None:
        """The run that its model started from; see `read_started_from`."""
        return read_started_from(self.folder)

    @property
    def stopped_early(self) -> bool:
        """Whether its training ended before its last round: no watched metric improved (`early_stopping`)."""
        return self.last_training_round is not None and self.last_training_round < self.run.num_rounds


def read_started_from(folder: Path) -> JsonObject | None:
    """Return the facts about the run that the model of a folder's run started from, as `Start.facts` made them.

    Returns:
        None if the model didn't start from a run, or the folder can't be read.
    """
    try:
        started: JsonObject | None = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("started_from")
    except (OSError, ValueError, AttributeError):
        return None
    return started


def databases_of(runs_dir: Path, url: str | None) -> list[str | Path]:
    """Return the databases with runs: the one at a URL, or those in the run folders of `runs_dir`.

    Raises:
        UserError: `runs_dir` doesn't exist.
    """
    if url is not None:
        return [url]
    if not runs_dir.is_dir():
        raise UserError(f"{runs_dir}: there is no such folder; say where the runs are with --runs-dir or --url")
    return sorted(runs_dir.glob(f"*/{HISTORY_FILE}"))


def where_text(runs_dir: Path, url: str | None) -> str:
    """Describe where runs were looked for."""
    return str(runs_dir) if url is None else "the database"


@contextlib.contextmanager
def opened(database: str | Path) -> Iterator[History]:
    """Open a history for the `with` block.

    Raises:
        StoreError: the history can't be read.
    """
    from fedmtl_server.storage.history import History

    with contextlib.closing(History.open(database, create=False)) as history:
        yield history


def read_runs(databases: Iterable[str | Path]) -> tuple[list[Place], dict[Path, StoreError]]:
    """Return the runs of some databases, the newest first, and the error of each file that can't be read."""
    places, unreadable = [], {}
    for database in databases:
        try:
            with opened(database) as history:
                runs = history.runs()
                last = {run.run_id: history.last_training_round(run.run_id) for run in runs}
        except StoreError as error:
            if isinstance(database, str):
                raise
            unreadable[database] = error
            continue
        for run in runs:
            folder = database.parent if isinstance(database, Path) else Path(run.run_dir)
            places.append(Place(database, run, folder, len(runs) - 1, last[run.run_id]))
    return sorted(places, key=lambda place: place.run.created_at_unix_ms, reverse=True), unreadable


def find_run(name: str, runs_dir: Path, url: str | None) -> Place:
    """Return the run with an id, the beginning of an id, or a folder's path or name.

    Raises:
        UserError: no run matches, or several do.
        StoreError: the run's history can't be read.
    """
    here = Path(name) / HISTORY_FILE
    places, unreadable = read_runs([here] if url is None and here.is_file() else databases_of(runs_dir, url))
    rules: tuple[Callable[[Place], bool], ...] = (
        lambda place: place.run.run_id == name,
        lambda place: place.folder.name == name or place.folder.resolve() == Path(name).resolve(),
        lambda place: place.run.run_id.startswith(name),
    )
    for rule in rules:
        found = [place for place in places if name and rule(place)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"RUN: {name!r} could be any of {_named(found)}")
    for path, error in unreadable.items():
        if path == here or path.parent.name == name:
            raise error
    for folder in (Path(name), runs_dir / name) if url is None and name else ():
        if lacks_history(folder):
            raise StoreError(missing_history(folder))
    there = f"there are {_named(places)}" if places else "there are no runs"
    if unreadable:
        there = f"{there} that can be read; {'; '.join(map(str, unreadable.values()))}"
    raise UserError(f"RUN: no run {name!r} in {where_text(runs_dir, url)}; {there}")


def _named(places: Sequence[Place]) -> str:
    return ", ".join(f"{place.run.run_id} ({place.folder.name})" for place in places)


def why_not_removed(place: Place) -> str | None:
    """Return the reason why a run can't be removed; None if it can."""
    folder = place.folder
    if is_held(folder):
        return "a server is serving it"
    if folder.is_symlink():
        return "its folder is a symbolic link"
    if not folder.exists():
        if isinstance(place.database, Path):
            return "its folder is gone"
        is_finished = place.run.state == "finished"
        return None if is_finished else "its folder isn't on this machine: a server elsewhere may be serving it"
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        return "its folder contains the working directory"
    if isinstance(place.database, Path) and place.num_others:
        return f"its database holds other runs ({place.num_others})"
    if not holds(folder, place):
        return "its folder doesn't hold this run"
    return None


def holds(folder: Path, place: Place) -> bool:
    """Return whether the files in a folder show that it belongs to the run; symbolic links don't count."""
    ids = []
    for name in _ID_FILES:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            try:
                ids.append(json.loads(path.read_text(encoding="utf-8"))["run_id"])
            except (OSError, ValueError, KeyError, TypeError):
                return False
    by_history = place.database == folder / HISTORY_FILE and not (folder / HISTORY_FILE).is_symlink()
    return all(run_id == place.run.run_id for run_id in ids) and (bool(ids) or by_history)


def remove_run(place: Place) -> None:
    """Remove a run. A removal that was interrupted can be repeated.

    Raises:
        StoreError: a server is serving the run, or a file can't be removed.
    """
    from filelock import FileLock, Timeout

    folder = place.folder
    try:
        if folder.exists():
            with FileLock(folder / LOCK_FILE, blocking=False):
                _empty(folder)
            folder.rmdir()
        if isinstance(place.database, str):
            with opened(place.database) as history:
                history.delete_run(place.run.run_id)
    except Timeout:
        raise StoreError(f"{folder}: a server has just resumed the run") from None
    except OSError as error:
        raise StoreError(f"can't remove {error.filename or folder}: {error.strerror or error}") from error


def _empty(folder: Path) -> None:
    """Remove everything in a folder, and last the files that identify the run. Links are removed, but not their
    targets."""
    last = [
        folder / name for name in (f"{HISTORY_FILE}-wal", f"{HISTORY_FILE}-shm", HISTORY_FILE, *_ID_FILES, LOCK_FILE)
    ]
    for path in [*(path for path in folder.iterdir() if path not in last), *last]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def num_bytes_in(folder: Path) -> int:
    """Return the bytes of the files in a folder, without the targets of links."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size
