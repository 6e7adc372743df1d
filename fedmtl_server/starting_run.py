"""The run that a new run starts from: finds the run, its round and its model by `model.from_run`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, ModelUnavailableError, StoreError, UserError
from fedmtl_core.identifiers import name_some
from fedmtl_server.model import MTLServerModel
from fedmtl_server.saved_runs import SavedRun, Which, best_round, choose_round, load_model, open_run
from fedmtl_server.starting_adapters import require_same_adapters
from fedmtl_server.storage.folders import read_run_id
from fedmtl_server.storage.paths import RUN_FILE

KEY = "model.from_run"
"""The setting, for messages."""


@dataclass(frozen=True)
class Source:
    """A round of a saved run."""

    run: SavedRun
    round: int

    def load(self) -> MTLServerModel:
        """Load the model after the round, and check its digests if the run has a history.

        Raises:
            StoreError: the checkpoint is damaged or can't be read.
            UserError: a parameter is NaN or infinite.
            ModelUnavailableError: the encoder's architecture can't be loaded.
        """
        with _attributed():
            return load_model(self.run, self.round, option="")


def find_source(config: Config) -> Source | None:
    """Return the round of the run that `model.from_run` names; None if it names none.

    `best` is the best round for the tasks of both runs, or for all tasks of that run, without auxiliary tasks.

    Raises:
        ConfigError: there is no such run or round, or several; or its adapters differ from those of this run.
        StoreError: the run can't be read.
    """
    text = config.model.from_run
    if text is None:
        return None
    with _attributed():
        is_name = _folder_named(text, config.server.runs_dir) is not None  # with an @ in it
        name, which = (text, "last") if is_name else _parted(text)
        run = open_run(_folder(name, config.server.runs_dir))
    require_same_adapters(KEY, run.folder, run.config, config)
    with _attributed():
        if which == "best":
            theirs = [task for task in run.config.tasks if task not in run.config.auxiliary_tasks()]
            return Source(run, best_round(run, [task for task in theirs if task in config.tasks] or theirs))
        return Source(run, choose_round(run, which, None, option=""))


def _parted(text: str) -> tuple[str, Which]:
    """Return the run and the round in the value of `model.from_run`; the newest round if it names none."""
    name, at, which = text.rpartition("@")
    if not at:
        return text, "last"
    if which.isdecimal():
        return name, int(which)
    if which in ("best", "last"):
        return name, "best" if which == "best" else "last"
    raise ConfigError(f"expected a round's number, `best` or `last` after the @, got {text!r}")


def _folder_named(name: str, runs_dir: Path) -> Path | None:
    """Return the folder of a run by its path or its name in `runs_dir`; None if there is none."""
    return next((one for one in (Path(name), runs_dir / name) if (one / RUN_FILE).is_file()), None)


def _folder(name: str, runs_dir: Path) -> Path:
    """Return the folder of a run, by its path, or by its name or the beginning of its id in `runs_dir`.

    Raises:
        ConfigError: no run matches, or several do.
    """
    if (folder := _folder_named(name, runs_dir)) is not None:
        return folder
    ids: dict[Path, str] = {}
    for path in sorted(runs_dir.glob(f"*/{RUN_FILE}")):
        try:
            ids[path.parent] = read_run_id(path)
        except StoreError:  # this run isn't the one, or can't be read anyway
            continue
    found = [folder for folder, run_id in ids.items() if name and run_id.startswith(name)]
    if len(found) > 1:
        raise ConfigError(f"{name!r} could be any of the runs {name_some([one.name for one in found])} in {runs_dir}")
    if not found:
        there = name_some([one.name for one in reversed(ids)]) or "no run"
        raise ConfigError(
            f"there is no run {name!r}: expected the path of a run's folder, or the name or id of a run in {runs_dir}, "
            f"which has {there}"
        )
    return found[0]


@contextmanager
def _attributed() -> Iterator[None]:
    """Attribute the errors raised in the context to the setting."""
    try:
        yield
    except (UserError, StoreError) as error:
        kind = type(error) if isinstance(error, (ConfigError, ModelUnavailableError, StoreError)) else ConfigError
        raise kind(f"{KEY}: {error}") from None
