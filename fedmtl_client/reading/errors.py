"""Errors in a file's content; the caller adds the file's name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class MalformedError(Exception):
    """A file contradicts its format, or is ambiguous. The message says where in the file and how to fix it."""


_SHOWN = 60
"""Rows are truncated to this many characters in messages."""


def excerpt(text: str) -> str:
    """Return a row or a cell for a message: quoted, and truncated if it is long."""
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 field`, `2 fields`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def require_once(wanted: Iterable[str], names: Sequence[str]) -> None:
    """Check that no wanted name occurs twice.

    Raises:
        MalformedError: a wanted name occurs more than once.
    """
    for name in wanted:
        if (count := names.count(name)) > 1:
            raise MalformedError(f"{count} columns have the name {name!r}; rename all but one")
