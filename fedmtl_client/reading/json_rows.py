"""JSON: one object per row, on lines or in one array, with unchanged values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, cast

from fedmtl_client.reading.errors import MalformedError, excerpt
from fedmtl_client.reading.records import decoded
from fedmtl_client.tables import Table
from fedmtl_core.errors import first_line

_BLANK = b" \t\r\n"

Open = Callable[[], BinaryIO]


class _Repeated(dict[str, object]):
    """An object with a repeated key."""

    def __init__(self, pairs: Sequence[tuple[str, object]]):
        super().__init__(pairs)
        self.keys_in_file = [key for key, _ in pairs]


def read(open_file: Open, wanted: Sequence[str]) -> Table:
    """Read the wanted keys of a file's objects; keys that no object has are omitted.

    Args:
        open_file: opens the file's bytes from the beginning.
        wanted: names of keys.

    Raises:
        MalformedError: the file isn't JSON, or some objects lack a wanted key.
    """
    columns: dict[str, list[object]] = {name: [] for name in wanted}
    targets = [(name, column.append) for name, column in columns.items()]
    known: dict[str, None] = {}
    for row, (place, value) in enumerate(_objects(open_file), 1):
        if not isinstance(value, dict):
            raise MalformedError(f"{place}: expected an object such as {{{_example(wanted)}}}, found {_kind(value)}")
        if row == 1 or not wanted:
            known.update(dict.fromkeys(value))
        if type(value) is _Repeated and (twice := [name for name in wanted if value.keys_in_file.count(name) > 1]):
            raise MalformedError(f"{place}: the key {twice[0]!r} occurs more than once")
        for name, append in targets:
            try:
                append(value[name])
            except KeyError:
                return _without(open_file, name, row, place, wanted)
    for name, values in columns.items():
        _require_characters(name, values)
    return Table(columns, available=list(known))


def _without(open_file: Open, name: str, row: int, place: str, wanted: Sequence[str]) -> Table:
    """Return the table of a file in which a row lacks a wanted key: a table without this column.

    Raises:
        MalformedError: other rows have the key.
    """
    known: dict[str, None] = {}
    for _, value in _objects(open_file):
        known.update(dict.fromkeys(value if isinstance(value, dict) else ()))
    if name in known:
        at = "" if place == f"row {row:,}" else f" (row {row:,})"
        raise MalformedError(f"{place}{at}: there is no {name!r}, which other rows have")
    return Table({one: [] for one in wanted if one in known and one != name}, available=list(known))


def _objects(open_file: Open) -> Iterator[tuple[str, object]]:
    """Return a file's values with their places, for messages."""
    with open_file() as file:
        first = next((line for line in file if line.strip(_BLANK).removeprefix(b"\xef\xbb\xbf")), b"")
    if first.removeprefix(b"\xef\xbb\xbf").lstrip(_BLANK).startswith(b"["):
        return ((f"row {row:,}", value) for row, value in enumerate(_array(open_file), 1))
    return ((f"line {number:,}", value) for number, value in _lines(open_file))


def _lines(open_file: Open) -> Iterator[tuple[int, object]]:
    with open_file() as file:
        for number, line in enumerate(file, 1):
            text = decoded(line, number)
            if not text.strip():
                continue
            try:
                value = _loads(text)
            except json.JSONDecodeError as error:
                if error.msg == "Extra data" and "\r" in text[: error.pos]:
                    raise MalformedError(
                        f"line {number:,}: lines end with a carriage return alone (CR); end them with LF or CR LF"
                    ) from None
                raise MalformedError(
                    f"line {number:,}, character {error.colno:,}: expected one JSON object per line, or one array of "
                    f"objects ({error.msg}), found {excerpt(text.rstrip())}"
                ) from None
            except (ValueError, RecursionError) as error:
                raise MalformedError(f"line {number:,}: {_reason(error)}") from None
            yield number, value


def _array(open_file: Open) -> Iterable[object]:
    with open_file() as file:
        text = "".join(decoded(line, number) for number, line in enumerate(file, 1))
    try:
        return cast("list[object]", _loads(text))  # `_objects` has checked that it begins with "["
    except json.JSONDecodeError as error:
        raise MalformedError(f"line {error.lineno:,}, character {error.colno:,}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedError(_reason(error)) from None


def _loads(text: str) -> object:
    value: object = json.loads(text, object_pairs_hook=_object)
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Repeated(pairs)


def _require_characters(name: str, values: Iterable[object]) -> None:
    """Check that strings are valid Unicode: an escape such as `\\ud83d` alone is half of a character.

    Raises:
        MalformedError: a string isn't.
    """
    for row, value in enumerate(values, 1):
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise MalformedError(
                    f"row {row:,}: {name}: unpaired surrogate \\u{ord(value[error.start]):04x} (half of a character)"
                ) from None


def _example(wanted: Sequence[str]) -> str:
    return ", ".join(f'"{name}": …' for name in wanted)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _reason(error: BaseException) -> str:
    return "the JSON is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
