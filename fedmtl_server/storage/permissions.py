"""The mode of a run's folder: which users of this machine may read the run. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

from fedmtl_core.config import Readers

_MODES: dict[Readers, int] = {"owner": 0o700, "group": 0o750, "all": 0o755}


def make_run_folder(run_dir: Path, readable_by: Readers) -> None:
    """Make a run's folder with its mode, whatever the umask. A folder that exists keeps the mode that it has.

    Args:
        run_dir: the folder. Missing parent folders follow the umask.
        readable_by: the users who may read it.

    Raises:
        OSError: the folder can't be made.
    """
    if not run_dir.parent.exists():
        run_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_dir.mkdir(mode=0o700)  # so that it is never open to other users, even briefly
    except FileExistsError:
        if not run_dir.is_dir():
            raise
        return
    run_dir.chmod(_MODES[readable_by])
