"""Files of acknowledged updates that no commit contains yet.

A file is a preamble, the update's header and its encoded bytes. The preamble is written last and erased first, so a
file without one is incomplete, and a file with a wrong checksum is damaged. Both are discarded.

    8 bytes   "FEDMTLU1"
    8         bytes of the header
    8         bytes of the data
    4         CRC32C of header and data
    4         0
    …         header (a serialized `UpdateHeader`), data (the components' encoded bytes, one after the other)
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import count
from pathlib import Path

import google_crc32c
import torch
from torch import Tensor

from fedmtl_core.errors import StoreError
from fedmtl_core.logs import get_logger
from fedmtl_server.storage.files import sync_folder

_PREAMBLE = struct.Struct("<8sQQII")
_MAGIC = b"FEDMTLU1"
_READ_BYTES = 4 * 2**20
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


@dataclass(frozen=True)
class SpooledFile:
    """One complete update on disk."""

    path: Path
    header: bytes
    num_bytes: int
    """The length of its data."""


class Spool:
    """A folder of updates. Files are reused, because overwriting a file is much faster than creating one.

    Args:
        folder: the folder, which is created when first needed.
        sync: whether an update is on disk, and not only in the operating system's cache, before `write` returns.
    """

    def __init__(self, folder: Path, *, sync: bool = False):
        self.folder = folder
        self._sync = sync
        self._free: list[Path] = []
        self._numbers = count()

    def write(self, header: bytes, buffers: Sequence[Tensor]) -> Path:
        """Write an update to a file.

        Args:
            header: a serialized `UpdateHeader`.
            buffers: uint8, the consecutive parts of the data.

        Raises:
            OSError: the file can't be written; it is removed.
        """
        path = self._free.pop() if self._free else None
        is_new = path is None
        if path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{next(self._numbers):04}.update"
        try:
            with path.open("wb" if is_new else "r+b", buffering=0) as file:
                file.write(bytes(_PREAMBLE.size))
                _write(file.fileno(), memoryview(header))
                crc = google_crc32c.value(header)
                for buffer in buffers:
                    data = memory(buffer)
                    crc = google_crc32c.extend(crc, buffer.numpy())
                    _write(file.fileno(), data)
                num_bytes = sum(map(len, buffers))
                os.pwrite(file.fileno(), _PREAMBLE.pack(_MAGIC, len(header), num_bytes, crc, 0), 0)
                if self._sync:
                    _sync_data(file.fileno())
            if self._sync and is_new:
                sync_folder(self.folder)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def read(self, path: Path, buffers: Sequence[Tensor]) -> None:
        """Read an update's data into buffers of its size.

        Raises:
            StoreError: the file can't be read, or differs from what was written.
        """
        try:
            with path.open("rb", buffering=0) as file:
                _, header_bytes, _, crc, _ = _PREAMBLE.unpack(file.read(_PREAMBLE.size))
                found = google_crc32c.value(file.read(header_bytes))
                for buffer in buffers:
                    _read_into(file, memory(buffer))
                    found = google_crc32c.extend(found, buffer.numpy())
        except (OSError, EOFError, struct.error) as error:
            raise StoreError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error
        if found != crc:
            raise StoreError(f"{path} isn't what was written to it: its checksum is wrong")

    def require_whole(self, path: Path) -> None:
        """Check that a file's content is what was written to it: one pass over it, in little memory.

        Raises:
            StoreError: it can't be read, or differs from what was written.
        """
        try:
            is_whole = _read_whole(path) is not None
        except OSError as error:
            raise StoreError(f"can't read {path}: {error.strerror or error}") from error
        if not is_whole:
            raise StoreError(f"{path} isn't what was written to it: its checksum is wrong")

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[Callable[[int, int], Tensor]]:
        """Open the file of an update that `require_whole` accepts, to read ranges of its data.

        Yields:
            A function that returns the bytes between two offsets in the data, uint8, in new memory.

        Raises:
            StoreError: the file can't be read.
        """
        try:
            with path.open("rb", buffering=0) as file:
                first = _PREAMBLE.size + _PREAMBLE.unpack(file.read(_PREAMBLE.size))[1]

                def read(start: int, stop: int) -> Tensor:
                    buffer = torch.empty(stop - start, dtype=torch.uint8)
                    file.seek(first + start)
                    _read_into(file, memory(buffer))
                    return buffer

                yield read
        except (OSError, EOFError, struct.error) as error:
            raise StoreError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error

    def discard(self, path: Path) -> None:
        """Erase the update in a file, so that the file can be used for another one."""
        with contextlib.suppress(OSError), path.open("r+b", buffering=0) as file:
            file.write(bytes(_PREAMBLE.size))
            self._free.append(path)

    def scan(self) -> list[SpooledFile]:
        """Return the complete updates in the folder, the oldest first; other files are discarded.

        Raises:
            StoreError: the folder can't be read.
        """
        try:
            paths = sorted(self.folder.glob("*.update"), key=lambda path: (path.stat().st_mtime_ns, path.name))
            found = [(path, _read_whole(path)) for path in paths]
        except OSError as error:
            raise StoreError(f"can't read {self.folder}: {error.strerror or error}") from error
        self._numbers = count(max((int(path.stem) for path in paths if path.stem.isdigit()), default=-1) + 1)
        for path, whole in found:
            if whole is None:
                self.discard(path)
        return [whole for _, whole in found if whole is not None]

    def close(self) -> None:
        """Remove the files without an update."""
        while self._free:
            self._free.pop().unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it doesn't exist, or files in it are still in use
            self.folder.rmdir()


def memory(buffer: Tensor) -> memoryview:
    """Return a CPU tensor's bytes, without a copy."""
    return memoryview(buffer.numpy())  # type: ignore[arg-type]  # a ndarray is a Buffer


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read_into(file: FileIO, data: memoryview) -> None:
    while data:
        num_bytes = file.readinto(data)
        if not num_bytes:
            raise EOFError("the file is shorter than what was written to it")
        data = data[num_bytes:]


def _read_whole(path: Path) -> SpooledFile | None:
    """Return the update in a file; None if it is incomplete or damaged. Damage is logged."""
    with path.open("rb", buffering=0) as file:
        preamble = file.read(_PREAMBLE.size)
        if len(preamble) < _PREAMBLE.size:
            return None
        magic, header_bytes, num_bytes, crc, _ = _PREAMBLE.unpack(preamble)
        if magic != _MAGIC:
            return None
        header = file.read(min(header_bytes, os.fstat(file.fileno()).st_size))
        found, left = google_crc32c.value(header), num_bytes
        while left and (data := file.read(min(left, _READ_BYTES))):
            found, left = google_crc32c.extend(found, data), left - len(data)
    if found == crc and not left:
        return SpooledFile(path, header, num_bytes)
    get_logger().error("update.damaged", path=str(path), reason="its checksum is wrong")
    return None
