"""Addresses of rows: a file, a folder or a pattern of files, local or remote, compressed or not."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from fedmtl_client.reading import remote
from fedmtl_client.reading.remote import shown
from fedmtl_core.errors import DataError

__all__ = ["FORMATS", "Part", "find_parts", "shown"]

FORMATS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
"""Formats by suffix."""


def _zstd(file: BinaryIO) -> BinaryIO:
    """Decompress with Arrow, which raises an error for a truncated file; `zstandard.open` does not."""
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))


Decompress = Callable[[BinaryIO], BinaryIO]
"""Opens a compressed file for reading."""

_COMPRESSIONS: dict[str, Decompress] = {
    ".gz": cast(Decompress, gzip.open),
    ".bz2": cast(Decompress, bz2.open),
    ".xz": cast(Decompress, lzma.open),
    ".zst": _zstd,
}


@dataclass(frozen=True)
class Part:
    """One file with rows."""

    name: str
    """The file's address, as messages show it."""
    format: str
    """One of the values of `FORMATS`."""
    decompress: Decompress | None
    """Opens a compressed file for reading; None if the file isn't compressed."""
    source: Callable[[], BinaryIO]
    """Opens the file's bytes."""
    is_local: bool

    @contextmanager
    def opened(self) -> Iterator[Callable[[], BinaryIO]]:
        """Yield a function that opens the decompressed bytes from the beginning. Only one stream may be open at a time.

        A remote file is downloaded once, to an unnamed temporary file, so no copy outlives the process. Remote Parquet
        is read in place if the file system can read parts of a file, since Parquet stores columns separately.
        """
        if self.is_local or (self.format == "parquet" and not self.decompress and remote.is_seekable(self.name)):
            yield lambda: self._decompressed(self.source())
            return
        with tempfile.TemporaryFile() as copy:
            with self.source() as stream:
                while block := stream.read(1 << 20):
                    copy.write(block)
            copy.flush()

            def again() -> BinaryIO:
                copy.seek(0)
                return self._decompressed(os.fdopen(os.dup(copy.fileno()), "rb"))

            yield again

    def _decompressed(self, file: BinaryIO) -> BinaryIO:
        return self.decompress(file) if self.decompress else file


def find_parts(address: str) -> list[Part]:
    """Return the files at an address, sorted by name.

    Args:
        address: the path or URL of a file, a folder of files, or a pattern (`*`, `?`, `[…]`, `**`).

    Raises:
        FileNotFoundError: the path names no file, and as a pattern it matches none.
        DataError: the address has no files with rows, or files of several formats.
    """
    if remote.is_url(address):
        return _remote_parts(address)
    path = Path(address)
    if path.is_file():
        paths = [path]
    elif path.is_dir():
        names = _in_folder(address, os.listdir(path), lambda name: (path / name).is_dir())
        paths = [path / name for name in names]
    else:
        found = [one for one in glob.glob(address, recursive=True) if Path(one).is_file()]
        paths = [Path(one) for one in _visible(address, found)]
    if not paths:
        raise FileNotFoundError(address)
    parts = [_part(str(path), str(path), _opener(path), is_local=True) for path in paths]
    return _of_one_format(address, parts)


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def _remote_parts(address: str) -> list[Part]:
    name = shown(address)
    if remote.is_http(address):
        return [_part(name, urlsplit(address).path, partial(remote.download, address), is_local=False)]
    with remote.reaching(address) as (files, path):
        if files.isdir(path):
            is_folder = {PurePosixPath(one["name"]).name: one["type"] == "directory" for one in files.ls(path)}
            found = [f"{path}/{one}" for one in _in_folder(name, list(is_folder), is_folder.__getitem__)]
        elif files.exists(path) or not glob.has_magic(path):
            return [_part(name, path, partial(remote.open_file, address, path), is_local=False)]
        else:
            found = _visible(path, [one for one in files.glob(path) if not files.isdir(one)])
    if not found:
        raise DataError(f"no file matches {name}")
    start = f"{urlsplit(address).scheme}://"
    parts = [
        _part(start + one.lstrip("/"), one, partial(remote.open_file, address, one), is_local=False) for one in found
    ]
    return _of_one_format(name, parts)


def _in_folder(address: str, names: Sequence[str], is_folder: Callable[[str], bool]) -> list[str]:
    """Return the names of a folder's files with rows: those that begin neither with a dot nor with an underscore.

    Raises:
        DataError: the folder has no such file, or has subfolders.
    """
    if "_delta_log" in names:
        raise DataError(f"{address} is a Delta table, whose folder also holds deleted rows; export it as Parquet")
    visible = sorted(name for name in names if not _is_hidden(name))
    if inner := [name for name in visible if is_folder(name)]:
        raise DataError(
            f"{address} has subfolders ({inner[0]}); give a pattern such as "
            f"{address.rstrip('/')}/**/*.parquet. Columns that exist only in folder names are not read"
        )
    if not visible:
        raise DataError(f"{address} is a folder without data files; expected files ending in {', '.join(FORMATS)}")
    return visible


def _visible(pattern: str, found: Sequence[str]) -> list[str]:
    """Return the found files, sorted, without those with a hidden name in the variable part of their path."""
    parts = Path(pattern).parts
    literal = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return sorted(one for one in found if not any(map(_is_hidden, Path(one).parts[literal:])))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _part(name: str, path: str, source: Callable[[], BinaryIO], is_local: bool) -> Part:
    suffixes = [suffix.lower() for suffix in PurePosixPath(Path(path).name).suffixes]
    decompress = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    suffix = (suffixes[:-1] if decompress else suffixes)[-1:]
    if not suffix or suffix[0] not in FORMATS:
        raise DataError(
            f"expected a file ending in {', '.join(FORMATS)}, alone or followed by {', '.join(_COMPRESSIONS)}, "
            f"got {name!r}"
        )
    return Part(name, FORMATS[suffix[0]], decompress, source, is_local)


def _of_one_format(address: str, parts: list[Part]) -> list[Part]:
    formats = {part.format: part.name for part in reversed(parts)}
    if len(formats) > 1:
        raise DataError(
            f"{address} has files of several formats: {', '.join(sorted(formats.values()))}; give a pattern that "
            f"matches one format"
        )
    return parts
