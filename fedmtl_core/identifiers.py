"""The form of client ids, update ids and task names, and text from other parties in messages."""

import re
from collections.abc import Sequence

from fedmtl_core.errors import InvalidRequestError

_IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_SHOWN = 64


def require_identifier(field: str, value: str) -> str:
    """Check a client id, update id or task name: 1 to 64 letters, digits, `.`, `_` or `-`.

    Raises:
        InvalidRequestError: the value has another form.
    """
    if not _IDENTIFIER.fullmatch(value):
        raise InvalidRequestError(
            f"{field}: expected 1 to 64 letters, digits, '.', '_' or '-', got {quoted(value)}", field=field
        )
    return value


def name_some(names: Sequence[str], at_most: int = 5) -> str:
    """Return a list of names for people, shortened if it is long: `a, b and 998 more`."""
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")


def name_task(task: str, *, auxiliary: bool) -> str:
    """Return a task's name for people, marked if the task is auxiliary."""
    return f"{task} (auxiliary)" if auxiliary else task


def shown(value: str) -> str:
    """Make text from another party safe for a log line: printable ASCII of limited length."""
    text = ascii(value[: _LONGEST_SHOWN + 1])[1:-1]
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(value)} characters)"


def quoted(value: str) -> str:
    """Make text from another party safe for a message: quoted, printable ASCII of limited length."""
    return f"'{shown(value)}'"
