"""The form of the names that people and programs give: client ids, update ids and tasks."""

import re
from collections.abc import Sequence

from fedmtl_core.errors import InvalidRequestError

_IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_SHOWN = 64


def require_identifier(field: str, value: str) -> str:
    """Check a client id, update id or task name: 1 to 64 letters, digits, `.`, `_` or `-`.

    Raises:
        InvalidRequestError: it is anything else.
    """
    if not _IDENTIFIER.fullmatch(value):
        raise InvalidRequestError(
            f"{field}: expected 1 to 64 letters, digits, '.', '_' or '-', got {quoted(value)}", field=field
        )
    return value


def name_some(names: Sequence[str], at_most: int = 5) -> str:
    """A list of names for people, however many there are: `a, b and 998 more`."""
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")


def name_task(task: str, *, auxiliary: bool) -> str:
    """A task's name, such that people see that it is auxiliary if it is."""
    return f"{task} (auxiliary)" if auxiliary else task


def shown(value: str) -> str:
    """Text that another party gave, fit for a log line: printable ASCII, and short however long it is."""
    text = ascii(value[: _LONGEST_SHOWN + 1])[1:-1]
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(value)} characters)"


def quoted(value: str) -> str:
    """Text that another party gave, fit for a message: in quotes, printable ASCII, and short however long it is."""
    return f"'{shown(value)}'"
