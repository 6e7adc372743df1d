"""Runs whose history should be in their folder, and isn't. Needs neither PyTorch nor SQLAlchemy."""

from __future__ import annotations

from pathlib import Path

from fedmtl_core import config as configuration
from fedmtl_core.errors import ConfigError
from fedmtl_server.storage.paths import CONFIG_FILE, HISTORY_FILE, RUN_FILE


def lacks_history(run_dir: Path) -> bool:
    """Return whether a folder holds a run whose history should be in the folder but is missing."""
    if not (run_dir / RUN_FILE).is_file() or (run_dir / HISTORY_FILE).is_file():
        return False
    try:
        return configuration.load(run_dir / CONFIG_FILE).store.url is None
    except ConfigError:
        return False


def missing_history(run_dir: Path) -> str:
    """Return the error message for a run without its history."""
    path = run_dir / HISTORY_FILE
    return (
        f"{path} is missing: the history of the run in {run_dir}, which says which rounds are committed "
        f"and which updates count. Restore the file, together with {HISTORY_FILE}-wal if you have one; nothing was "
        "changed. If it is lost, the run can't be resumed: `fedmtl-server export` still reads its models, and a new "
        "run begins in another folder (--run-dir)"
    )
