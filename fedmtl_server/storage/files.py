"""Files that are written whole or not at all, and on disk before anything depends on them. Needs no PyTorch."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmtl_core.errors import StoreError
from fedmtl_core.json_types import JsonObject


class WriteGate:
    """Admits threads that write until it is closed. Closing it waits for those that are still writing.

    A thread continues when the asyncio task that waited for it is cancelled; without the gate, its file or database
    could be closed while it writes.

    Args:
        closed: the error message after the gate is closed.
    """

    def __init__(self, closed: str):
        self._message = closed
        self._idle = threading.Condition()
        self._num_writing = 0
        self._closed = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Keep the gate open for the `with` block.

        Raises:
            StoreError: it is closed.
        """
        with self._idle:
            if self._closed:
                raise StoreError(self._message)
            self._num_writing += 1
        try:
            yield
        finally:
            with self._idle:
                self._num_writing -= 1
                self._idle.notify_all()

    def close(self) -> None:
        """Admit no further thread, and wait until the last one has left."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: self._num_writing == 0)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the `with` block into a `StoreError` that says what can't be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, as `fsync` flushes a file's bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and flush their names to disk.

    Raises:
        StoreError: one can't be made.
    """
    with write_errors(folder):
        for one in (*reversed(folder.parents), folder):
            if not one.exists():
                one.mkdir(exist_ok=True)
                sync_folder(one.parent)


def scratch_path(path: Path) -> Path:
    """Return the path under which a file is written before `move_into_place` renames it."""
    return path.with_suffix(".tmp")


def move_into_place(scratch: Path, path: Path, *, sync: bool = True) -> None:
    """Rename a finished file, so that its name refers to the whole file or to none.

    Args:
        scratch: the file, in the same folder.
        path: its name from now on.
        sync: whether the file also survives a power failure.

    Raises:
        OSError: it can't be renamed or flushed.
    """
    if sync:
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
    scratch.replace(path)
    if sync:
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all.

    Raises:
        StoreError: it can't be written.
    """
    with write_errors(path):
        scratch = scratch_path(path)
        scratch.write_text(text, encoding="utf-8")
        move_into_place(scratch, path)


def write_json(path: Path, value: JsonObject) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        StoreError: it can't be written.
        ValueError: a number is NaN or infinite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
