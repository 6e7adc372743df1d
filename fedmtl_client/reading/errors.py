"""What is wrong with a file, before anybody says which file it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class MalformedError(Exception):
    """A file contradicts its format, or has two meanings. The message says where in the file, and what to do."""


_SHOWN = 60
"""Longer rows are cut in messages, in characters."""


def excerpt(text: str) -> str:
    """A row or a cell in a message: quoted, and its beginning alone if it is long."""
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")


def counted(count: int, noun: str) -> str:
    """`1 field`, `2 fields`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def require_once(wanted: Iterable[str], names: Sequence[str]) -> None:
    """Check that no name among the wanted ones is there twice.

    Raises:
        MalformedError: one is; nobody can tell which is meant.
    """
    for name in wanted:
        if (count := names.count(name)) > 1:
            raise MalformedError(f"{count} columns have the name {name!r}; rename all but one")
