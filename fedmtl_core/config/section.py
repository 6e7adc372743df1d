"""The base class of configuration sections, and checks that several sections use."""

from __future__ import annotations

import difflib
import re
import reprlib
import types
import typing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from fedmtl_core import plugins
from fedmtl_core.errors import InvalidRequestError
from fedmtl_core.identifiers import require_identifier

UINT32 = 2**32 - 1  # the largest number in the contract's uint32 fields

SECRET = "secret"  # nosec B105
"""The type of an error whose message doesn't show the value."""

NOT_TEXT = "not_text"
"""The type of an error for text without quotes that YAML reads as another type."""

_LEADING_ZEROS = re.compile(r"\s*[-+]?0[0-9_]+\s*")

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 100, 100


Reader = Literal["server", "client", "launcher"]
"""A program that reads the configuration: `fedmtl-server`, `fedmtl-client` or `fedmtl-local`."""

READERS: tuple[Reader, ...] = typing.get_args(Reader)


@dataclass(frozen=True)
class ReadBy:
    """The programs that use a key, as `Annotated` metadata of its field; overrides `Section.read_by`."""

    readers: tuple[Reader, ...]


SERVER_AND_CLIENT = ReadBy(("server", "client"))
SERVER_AND_LAUNCHER = ReadBy(("server", "launcher"))
CLIENT_AND_LAUNCHER = ReadBy(("client", "launcher"))
EVERY_PROGRAM = ReadBy(READERS)


class Section(BaseModel):
    """An immutable section that refuses unknown keys. Its checks raise `ValueError` with a message for the user."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    read_by: ClassVar[tuple[Reader, ...]] = ()
    """The programs that use the section's keys, for keys without a `ReadBy` of their own.

    A key counts for the program whose behavior its value changes. Every program validates the whole file.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _taken_as_meant(cls, value: object, info: ValidationInfo) -> object:
        """Refuse NUL characters, and values that pydantic would convert to a wrong number, such as `true` or `0777`."""
        if isinstance(value, str) and "\0" in value:
            raise ValueError("expected text without a NUL character")
        _require_numbers(cls.model_fields[info.field_name or ""].annotation, value)
        return value


def _require_numbers(annotation: object, value: object) -> None:
    """Check that a number, or each number in a list or dictionary, has only one reading.

    Raises:
        ValueError: a value is true or false, or a text with leading zeros.
    """
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    if {int, float} & set(kinds):
        if isinstance(value, bool) and bool not in kinds:
            raise ValueError("expected a number")
        if isinstance(value, str) and str not in kinds and _LEADING_ZEROS.fullmatch(value):
            raise ValueError("expected a number without leading zeros, which some take for octal and others don't")
    for kind in kinds:
        if typing.get_origin(kind) in (list, tuple, dict) and isinstance(value, (list, tuple, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                _require_numbers(typing.get_args(kind)[-1], item)


def not_text(expected: str, value: object, *at: int | str, is_key: bool = False) -> PydanticCustomError:
    """An error for a value that should be text but that YAML reads as another type. Its message quotes the file's text.

    Args:
        expected: the expectation, for the message.
        value: the value that YAML read.
        at: the path from the checked field to the value.
        is_key: whether the path leads to a mapping's key instead of its value.
    """
    context = {"expected": expected, "text": shown(value), "at": at, "is_key": is_key}
    return PydanticCustomError(NOT_TEXT, "{expected}; put quotes around {text}", context)


def require_reference(value: str, expected: str = f"your own class as {plugins.FORM}") -> str:
    """Return a reference to a user's class, unchanged.

    Raises:
        ValueError: the reference doesn't have the form `module:Name`.
    """
    if not plugins.is_reference(value):
        raise ValueError(f"expected {expected}")
    return value


def require_known_or_reference(name: str, known: Sequence[str]) -> str:
    """Return a known name or a reference to a user's class, unchanged.

    Raises:
        ValueError: the name is neither known nor a reference.
    """
    if name not in known and not plugins.is_reference(name):
        close = difflib.get_close_matches(name[:100], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{hint}expected {', '.join(known)}, or module:Name for your own class")
    return name


def require_each_once(tasks: list[str]) -> list[str]:
    """Return the names of tasks, unchanged.

    Raises:
        ValueError: the list is empty or names a task twice.
    """
    if not tasks:
        raise ValueError("expected the name of at least one task")
    if twice := [task for task, count in Counter(tasks).items() if count > 1]:
        raise ValueError(f"expected each task once, got {twice[0]!r} twice")
    return tasks


def require_identified(value: str, what: str = "a client id") -> str:
    """Return an identifier, unchanged.

    Raises:
        ValueError: the value isn't a valid identifier.
    """
    try:
        return require_identifier(what, value)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from None


def require_no_password(url: str, instead: str) -> str:
    """Return a URL without a password, unchanged. The run's folder stores the URL, and messages show it.

    Args:
        url: the URL.
        instead: the place where the user can give the password, for the message.

    Raises:
        PydanticCustomError: the URL contains a password.
    """
    try:
        has_password = urlsplit(url).password is not None
    except ValueError:  # such as an unclosed bracket
        has_password = False
    if has_password:
        raise PydanticCustomError(
            SECRET, f"a password in the URL would be stored where others can read it; give the password in {instead}"
        )
    return url


def shown(value: object) -> str:
    """Return a short text for a value in a message, however large or deeply nested the value is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of too many digits
        return f"a very large {type(value).__name__}"
