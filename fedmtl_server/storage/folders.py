"""The run in a folder: its id and configuration, its state, and whether it can be resumed.

Nothing is written here, and PyTorch isn't needed.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from fedmtl_core import config as configuration
from fedmtl_core.config import Config, contradictions
from fedmtl_core.errors import ConfigError, StoreError
from fedmtl_server.storage.history import History
from fedmtl_server.storage.lock import is_held
from fedmtl_server.storage.missing import missing_history
from fedmtl_server.storage.paths import CONFIG_FILE, HISTORY_FILE, RUN_FILE
from fedmtl_server.storage.records import RunState

_NEWEST = 8
"""The number of newest runs among which an unfinished one is looked for."""


def held_run(run_dir: Path) -> tuple[str, Config] | None:
    """Return the id and the configuration of the run in a folder; None if there is no run in it.

    Raises:
        StoreError: a file of the run can't be read.
    """
    path = run_dir / RUN_FILE
    if not path.exists():
        return None
    try:
        return read_run_id(path), configuration.load(run_dir / CONFIG_FILE)
    except ConfigError as error:
        raise StoreError(f"{run_dir} holds a run that can't be read: {error}") from None


def state_of(run_dir: Path, config: Config) -> RunState | None:
    """Return the state of the run in a folder; None if there is no run in it, or its history doesn't know the run.

    Args:
        run_dir: the folder.
        config: the configuration to serve the run with, which says how to reach a history outside the folder.

    Raises:
        StoreError: the folder or the history can't be read.
    """
    held = held_run(run_dir)
    if held is None:
        return None
    run_id, stored = held
    url = stored.store.url and (config.store.url or stored.store.url)
    if url is None and not (run_dir / HISTORY_FILE).is_file():
        raise StoreError(missing_history(run_dir))
    with closing(History.open(url or run_dir / HISTORY_FILE, create=False)) as history:
        record = history.find_run(run_id)
    return record.state if record else None


def unfinished_run(config: Config) -> Path | None:
    """Return the folder of the newest run in `server.runs_dir` that a configuration could resume; None without one.

    Only the newest runs are checked, and a folder that can't be read is skipped.
    """
    try:
        runs = sorted(config.server.runs_dir.glob(f"*/{RUN_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:  # a folder was removed meanwhile
        return None
    return next((path.parent for path in runs[:_NEWEST] if _is_resumable(path.parent, config)), None)


def _is_resumable(run_dir: Path, config: Config) -> bool:
    try:
        held = held_run(run_dir)
        same = held is not None and not contradictions(held[1], config)
        return same and state_of(run_dir, config) == "running" and not is_held(run_dir)
    except StoreError:
        return False


def read_run_id(path: Path) -> str:
    """Read the run's id from a JSON file of its folder, such as `run.json`.

    Raises:
        StoreError: the file can't be read, or has no id.
    """
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path.parent} holds a run that can't be read: {path.name}: {error}") from None
