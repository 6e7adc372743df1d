"""The lock of a run's folder, which the server that serves the run holds. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from fedmtl_server.storage.paths import LOCK_FILE


def is_held(run_dir: Path) -> bool:
    """Return whether a server holds the lock of a run's folder. The check acquires the lock for a moment."""
    path = run_dir / LOCK_FILE
    try:
        if not path.is_file():
            return False
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # it can't be written, so no server can hold it
        return False
