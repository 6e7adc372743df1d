"""Files at URLs: `http(s)://` with the standard library, other schemes with `fsspec`."""

from __future__ import annotations

import base64
import http.client
import netrc
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol, TypedDict, cast
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit, urlunsplit

from fedmtl_core.addresses import is_loopback
from fedmtl_core.errors import DataError, first_line

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HTTP = re.compile(r"https?://", re.IGNORECASE)
_TIMEOUT_S = 60.0
"""Longest wait for a server's next bytes, in seconds."""


class Entry(TypedDict):
    """The part of an `fsspec` folder entry that is used here."""

    name: str
    type: str
    """`file` or `directory`."""


class FileSystem(Protocol):
    """The part of an `fsspec` file system that is used here."""

    def isdir(self, path: str) -> bool: ...
    def exists(self, path: str) -> bool: ...
    def ls(self, path: str) -> list[Entry]: ...
    def glob(self, path: str) -> list[str]: ...
    def open(self, path: str, mode: str) -> BinaryIO: ...


def is_url(address: str) -> bool:
    """Whether an address is a URL rather than a path."""
    return _URL.match(address) is not None


def is_http(address: str) -> bool:
    return _HTTP.match(address) is not None


def is_seekable(address: str) -> bool:
    """Whether parts of a file can be read without downloading the whole file."""
    return not is_http(address)


def shown(address: str) -> str:
    """Return an address without possible secrets: user name, password, values of the query."""
    if not is_url(address):
        return address
    try:
        parts = urlsplit(address)
    except ValueError:  # such as an unclosed bracket
        return _URL.match(address)[0] + "…"  # type: ignore[index]
    host = ("…@" if "@" in parts.netloc else "") + parts.netloc.rpartition("@")[2]
    query = "&".join(f"{key}=…" for key, _ in parse_qsl(parts.query, keep_blank_values=True))
    return urlunsplit(SplitResult(parts.scheme, host, parts.path, query, ""))


class _WholeBody:
    """The body of a response. Reading raises an error if the body is shorter than its Content-Length."""

    def __init__(self, address: str, response: http.client.HTTPResponse):
        self._address, self._response = address, response
        length = response.headers.get("Content-Length", "")
        self._expected = int(length) if length.isdigit() else None
        self._received = 0

    def __enter__(self) -> _WholeBody:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def read(self, size: int) -> bytes:
        with _downloading(self._address):
            block = self._response.read(size)  # raises nothing if the connection is cut: returns what arrived
        self._received += len(block)
        if not block and self._expected is not None and self._received != self._expected:
            raise DataError(
                f"{shown(self._address)} can't be downloaded: the connection ended after {self._received:,} of "
                f"{self._expected:,} bytes"
            )
        return block


def download(address: str) -> BinaryIO:
    """Open a file's bytes over HTTP, with the host's login in `~/.netrc` if there is one.

    Raises:
        DataError: the server can't be reached, doesn't have the file, or answers with a web page.
    """
    with _downloading(address):
        parts = urlsplit(address)
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
        host = parts.netloc.rpartition("@")[2]
        request = urllib.request.Request(urlunsplit((parts.scheme, host, path, parts.query, "")))
        if login := _login(parts):  # not sent to other hosts after a redirect
            request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        # The address is always http or https.
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # nosec B310
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise DataError(f"{shown(address)} can't be downloaded: the server answers with a web page, not with the file")
    return cast(BinaryIO, _WholeBody(address, response))


def _login(parts: SplitResult) -> str | None:
    """Return `user:password` for a host; None if there is no login, or it would be sent unencrypted."""
    host = parts.hostname or ""
    if parts.scheme.lower() != "https" and not is_loopback(host):
        return None
    try:
        found = netrc.netrc().hosts.get(host)
    except FileNotFoundError:
        return None
    except netrc.NetrcParseError as error:  # its message may have a password
        raise DataError(
            f"~/.netrc can't be read: check its line {error.lineno}, and that only you may read the file"
        ) from None
    except OSError as error:
        raise DataError(f"~/.netrc can't be read: {error.strerror}") from None
    return f"{found[0]}:{found[2]}" if found else None


@contextmanager
def _downloading(address: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        hint = "; put a user name and password for the host into ~/.netrc" if error.code in (401, 403) else ""
        raise DataError(
            f"{shown(address)} can't be downloaded: the server answers {error.code} {error.reason}{hint}"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{shown(address)} can't be downloaded: {_scrubbed(reason, address)}. Check the address and the network, "
            f"or give a local file"
        ) from None


@contextmanager
def reaching(address: str) -> Iterator[tuple[FileSystem, str]]:
    """Yield the file system of a URL, and the path in it.

    Raises:
        DataError: the scheme is unknown, its package is missing, or the file system reports an error.
    """
    import fsspec

    scheme = urlsplit(address).scheme.lower()
    try:
        yield fsspec.core.url_to_fs(address)
    except DataError:
        raise
    except ImportError:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}.get(
            scheme
        )
        needed = f"pip install {package}" if package else f"install what fsspec needs for {scheme}://"
        raise DataError(
            f"{shown(address)} can't be read: the package for {scheme}:// is not installed ({needed})"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{shown(address)} can't be read: there is no such file") from None
    except Exception as error:  # each file system raises its own errors
        known = (
            ""
            if scheme in fsspec.available_protocols()
            else (". Expected a path, http://, https://, or a scheme that fsspec knows, such as s3:// or hf://")
        )
        raise DataError(f"{shown(address)} can't be read: {_scrubbed(error, address)}{known}") from None


def open_file(address: str, path: str) -> BinaryIO:
    """Open a file in the file system of an address.

    Raises:
        DataError: as for `reaching`.
    """
    with reaching(address) as (files, _):
        return files.open(path, "rb")


def _scrubbed(error: BaseException | str, address: str) -> str:
    """Return the first line of a library's error message, without the address's secrets."""
    return first_line(error).replace(address, shown(address))
