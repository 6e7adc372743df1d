"""What a section of the configuration is, and checks that several have."""

from __future__ import annotations

import difflib
import re
import reprlib
import types
import typing
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from fedmtl_core import plugins
from fedmtl_core.errors import InvalidRequestError
from fedmtl_core.identifiers import require_identifier

UINT32 = 2**32 - 1  # what the contract can carry

SECRET = "secret"  # nosec B105
"""The type of an error whose value isn't shown."""

NOT_TEXT = "not_text"
"""The type of an error of a value that was to be text, and that YAML reads otherwise for want of quotes."""

_LEADING_ZEROS = re.compile(r"\s*[-+]?0[0-9_]+\s*")

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 100, 100


class Section(BaseModel):
    """One section: it doesn't change, and has no other keys than its own. Its checks raise `ValueError`, in words."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _taken_as_meant(cls, value: object, info: ValidationInfo) -> object:
        """Where numbers are expected pydantic takes `true` for 1, and the text `0777` for 777. Nothing takes a NUL."""
        if isinstance(value, str) and "\0" in value:
            raise ValueError("expected text without a NUL character")
        _require_numbers(cls.model_fields[info.field_name or ""].annotation, value)
        return value


def _require_numbers(annotation: object, value: object) -> None:
    """Check that what is to be a number, in itself or as an item, is none that could be meant otherwise.

    Raises:
        ValueError: it is true or false, or a text with leading zeros.
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
    """An error for a value that YAML took for none; its message quotes it as it stands in the file.

    Args:
        expected: what was.
        value: what YAML made of it.
        at: where it lies below the field that is checked.
        is_key: whether it is the key there, and not its value.
    """
    facts = {"expected": expected, "text": shown(value), "at": at, "is_key": is_key}
    return PydanticCustomError(NOT_TEXT, "{expected}; put quotes around {text}", facts)


def require_reference(value: str, expected: str = f"a class of your own as {plugins.FORM}") -> str:
    """A class of the user's own, as it is.

    Raises:
        ValueError: it isn't `module:Name`.
    """
    if not plugins.is_reference(value):
        raise ValueError(f"expected {expected}")
    return value


def require_known_or_reference(name: str, known: Sequence[str]) -> str:
    """One of the names that there are, or a class of the user's own, as it is.

    Raises:
        ValueError: it is neither.
    """
    if name not in known and not plugins.is_reference(name):
        close = difflib.get_close_matches(name[:100], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{hint}expected {', '.join(known)}, or module:Name for a class of your own")
    return name


def require_each_once(tasks: list[str]) -> list[str]:
    """Names of tasks, as they are.

    Raises:
        ValueError: there is none, or one is there twice.
    """
    if not tasks:
        raise ValueError("expected the name of one task at least")
    if twice := [task for task, count in Counter(tasks).items() if count > 1]:
        raise ValueError(f"expected each task once; {twice[0]!r} is there twice")
    return tasks


def require_identified(value: str, what: str = "a client id") -> str:
    """An identifier, as it is.

    Raises:
        ValueError: it can't be one.
    """
    try:
        return require_identifier(what, value)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from None


def require_no_password(url: str, instead: str) -> str:
    """A URL that is shown, and kept in the run's folder.

    Raises:
        PydanticCustomError: it has a password.
    """
    try:
        has_password = urlsplit(url).password is not None
    except ValueError:  # such as a bracket that isn't closed
        has_password = False
    if has_password:
        raise PydanticCustomError(SECRET, f"a password in it would be kept where others read it; give it in {instead}")
    return url


def shown(value: object) -> str:
    """A value in a message: short, however large or deep it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of too many digits
        return f"a very large {type(value).__name__}"
