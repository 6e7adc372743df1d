"""Writing the files of a new federation: all of them, after a dry run, or none."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmtl_core.errors import ConfigError, FedMTLError
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.doctor import Finding
from fedmtl_local.new.dry_run import dry_run
from fedmtl_local.new.federation import NewFederation, files_of
from fedmtl_local.new.readme import README_FILE, readme


def require_usable(folder: Path) -> None:
    """Check that a folder is empty, or doesn't exist.

    Raises:
        ConfigError: it is a file, or has files in it.
    """
    if folder.is_dir():
        if any(folder.iterdir()):
            raise ConfigError(f"DIR: {folder} exists and isn't empty; name a new folder")
    elif folder.exists() or folder.is_symlink():
        raise ConfigError(f"DIR: {folder} is a file; name a new folder")


def write(new: NewFederation, folder: Path, tokenizer: Any | None, tell: Callable[[Sequence[Finding]], None]) -> bool:
    """Write the files beside a folder, check them, and move them to their place.

    Args:
        new: the federation.
        folder: an absolute path; the folder is empty, or doesn't exist.
        tokenizer: the encoder's, if it is on this machine.
        tell: called with the dry run's findings.

    Returns:
        Whether the dry run succeeded; if not, the folder is as it was.

    Raises:
        FedMTLError: the files can't be written, or contradict each other; the folder is as it was.
    """
    with _ended_by_signals(), _scratch_beside(folder) as scratch:
        _write_files(scratch, files_of(new, scratch))
        found = dry_run(scratch, new.sites, tokenizer)
        tell(found)
        if doctor.has_failed(found):
            return False
        _write_files(scratch, {**files_of(new, folder), README_FILE: readme(new, folder)})
        _move(scratch, folder)
    return True


def _move(scratch: Path, folder: Path) -> None:
    """Move everything in a folder to another one.

    Raises:
        FedMTLError: it can't be moved; nothing was.
    """
    names = [path.name for path in scratch.iterdir()]
    try:
        if folder.is_dir():  # it may be the working directory, and stays the same one
            for name in names:
                shutil.move(scratch / name, folder / name)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch.rename(folder)
    except OSError as error:
        for path in (folder / name for name in names):
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        raise FedMTLError(f"DIR: {folder}: {error.strerror or error}; nothing was written") from None


@contextmanager
def _scratch_beside(folder: Path) -> Iterator[Path]:
    """A folder on the same file system, which is removed at the end unless it was moved."""
    parent = next(one for one in folder.parents if one.is_dir())
    outer = Path(tempfile.mkdtemp(prefix=f".{folder.name[:50]}-", dir=parent))
    try:
        inner = outer / "new"
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Leave by an exception at SIGTERM and SIGHUP, so that copies of rows are removed."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".jsonl":  # a copy of rows, which are for nobody else to read
            path.chmod(0o600)
