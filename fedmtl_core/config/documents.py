"""YAML documents: their values, and the line of each value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from fedmtl_core.config.section import NOT_TEXT, SECRET, shown
from fedmtl_core.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_MOST_LEVELS, _MOST_ITEMS, _MOST_CHARACTERS = 3, 6, 100


@dataclass(frozen=True)
class Place:
    """The place of a value in a document."""

    line: int | None
    """The line's number from 1; None for the whole document."""
    text: str
    """The value as written in the document, such as `no` instead of YAML's false; shortened if it is long."""
    is_scalar: bool


@dataclass(frozen=True)
class Document:
    """A YAML document."""

    values: object
    root: yaml.Node | None
    """None for an empty document."""

    @property
    def sections(self) -> dict[str, object]:
        """The values of a document that `read` returned; empty for an empty document."""
        return self.values if isinstance(self.values, dict) else {}

    def find(self, location: tuple[object, ...]) -> Place | None:
        """The place of the value at one of pydantic's locations, or of the last section on the path to the value."""
        node, line = self.root, None
        for part in location:
            if (found := _below(node, part)) is not None:
                # otherwise the part names one of several types, or a missing key
                key, node = found
                line = key.start_mark.line + 1
        return None if node is None else _place(line, node)

    def find_key(self, location: tuple[object, ...]) -> Place | None:
        """The place of the key at a location."""
        node = self.root
        for part in location[:-1]:
            node = found[1] if (found := _below(node, part)) else None
        found = _below(node, location[-1])
        return None if found is None else _place(found[0].start_mark.line + 1, found[0])


def parse(text: str) -> Document:
    """Parse a YAML document.

    Raises:
        yaml.YAMLError: the text isn't valid YAML, or is YAML that FedMTL refuses.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        mark = yaml.Mark("", error.position, line, 0, None, 0)
        raise yaml.scanner.ScannerError(None, None, f"the character {chr(error.character)!a}", mark) from None
    try:
        root = loader.get_single_node()
        return Document(None if root is None else loader.construct_document(root), root)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    finally:
        loader.dispose()


def read(path: Path) -> Document:
    """Read a YAML file of sections.

    Raises:
        ConfigError: the file can't be read or isn't valid, or its top level isn't a mapping of sections.
    """
    try:
        document = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{shown_path(path)}: can't read the configuration: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: can't read the configuration: it is not UTF-8 text") from None
    except ValueError as error:  # such as a NUL in the path
        raise ConfigError(f"{shown_path(path)}: can't read the configuration: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_message(path, error)) from None
    if document.values is not None and not isinstance(document.values, dict):
        raise ConfigError(f"{path}: expected sections such as `training:`, got {type(document.values).__name__}")
    return document


def shown_path(path: Path) -> str:
    """Return a printable path for a message; a path of more than 300 characters is shortened in the middle."""
    text = str(path)
    text = text if len(text) <= 300 else f"{text[:140]}…{text[-140:]}"
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode() for one in text
    )


@dataclass(frozen=True)
class Explained:
    """The explanation of an invalid value."""

    line: int | None
    """The value's line; None if the value doesn't come from a document."""
    text: str
    """The expectation and the value found."""


def explained(problem: ErrorDetails, document: Document, location: tuple[int | str, ...]) -> Explained:
    """Explain one of pydantic's problems.

    Args:
        problem: the problem.
        document: the document that the values were read from.
        location: the problem's location in the document.
    """
    place = document.find(location)
    line = place.line if place else None
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    message = message[:1].lower() + message[1:]
    if problem["type"] == "missing":
        return Explained(line, "required, but not given")
    if problem["type"] == NOT_TEXT:
        context = problem["ctx"]
        find = document.find_key if context["is_key"] else document.find
        place = find((*location, *context["at"]))
        text = f"{context['expected']}; put quotes around {place.text if place else context['text']}"
        return Explained(place.line if place else line, text)
    if problem["type"] == SECRET or isinstance(value, (dict, BaseModel)):
        return Explained(line, message)
    fits = place is not None and place.is_scalar != isinstance(value, (list, tuple))
    if problem["type"] == "path_type":
        message = "expected a path"
    if f"got {shown(value)}" not in message:
        message += f" (got {place.text if place and fits else shown(value)})"
    if problem["type"] == "string_type" and value is not None and not isinstance(value, (list, tuple)):
        message += "; put quotes around text"
    return Explained(line, message)


def place_text(name: str, line: int | None, key: str) -> str:
    """Return the place of a value for the start of a message: `FILE:LINE: KEY`, without unknown parts."""
    place = name if line is None else f"{name}:{line}"
    return f"{place}: {key}" if key else place


class _Refused(yaml.constructor.ConstructorError):
    """Text that is valid YAML but that FedMTL refuses."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with additional errors.

    It refuses a repeated key, whose first value would be lost, and text in the form of an invalid date or number.
    Numbers in base 60 and base 8 are refused, because few people read them as YAML 1.1 does.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            text = shown(node.value) if isinstance(node, yaml.ScalarNode) else "the value"
            kind = node.tag.removeprefix(_TAG)
            raise _refused(f"{text} can't be read as YAML's {kind}; put quotes around text", node) from None

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping as written, before other mappings are merged into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                continue
            value, line = (key.tag, key.value), key.start_mark.line + 1
            if value in lines:
                first = lines[value]
                where = f"twice on line {line}" if first == line else f"twice, on lines {first} and {line}"
                raise _refused(f"the key {_as_written(key, 1)} is given {where}", key)
            lines[value] = line
        return node

    def construct_plain_number(self, node: yaml.ScalarNode) -> int | float:
        """Construct a number; refuse numbers in base 60 and numbers with the leading zero of base 8."""
        is_integer = node.tag == f"{_TAG}int"
        value = self.construct_yaml_int(node) if is_integer else self.construct_yaml_float(node)
        text = shown(node.value).strip("'\"")
        base = "in base 60" if ":" in node.value else "in base 8" if is_integer and _OCTAL.fullmatch(node.value) else ""
        if base:
            raise _refused(
                f"YAML reads {text} as a number {base}, {shown(value)}; write {shown(value)} for that number, or put "
                "quotes around text",
                node,
            )
        return value


_Loader.add_constructor(f"{_TAG}int", _Loader.construct_plain_number)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_plain_number)


def _refused(reason: str, node: yaml.Node) -> _Refused:
    return _Refused(None, None, reason, node.start_mark)


def _yaml_message(path: Path, error: yaml.YAMLError) -> str:
    """Return a message with the file, the line and the YAML error."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    if isinstance(error, _Refused):
        return f"{place}: {error.problem}"
    if isinstance(error, yaml.MarkedYAMLError):
        context = f"{error.context}: " if error.context else ""
        return f"{place}: not valid YAML: {context}{error.problem}"
    return f"{place}: not valid YAML: {' '.join(str(error).split())}"


def _below(node: yaml.Node | None, part: object) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the nodes of a key and its value in a mapping, or an item's node twice; None without such a part."""
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # merged keys come first
            if isinstance(key, yaml.ScalarNode) and (key.value == str(part) or _is(key, part)):
                return key, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _is(key: yaml.ScalarNode, part: object) -> bool:
    """Whether a key that isn't text, such as `no`, has this value."""
    return key.tag != f"{_TAG}str" and parse(key.value).values is part


def _place(line: int | None, node: yaml.Node) -> Place:
    return Place(line, _as_written(node, _MOST_LEVELS) or "nothing", isinstance(node, yaml.ScalarNode))


def _as_written(node: yaml.Node, levels: int) -> str:
    if isinstance(node, yaml.ScalarNode):
        if node.tag == f"{_TAG}str":
            return shown(node.value)
        return node.value if len(node.value) <= _MOST_CHARACTERS else f"{node.value[:_MOST_CHARACTERS]}…"
    if levels == 0:
        return "…"
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(_cut(node.value, (_as_written(one, levels - 1) for one in node.value)))}]"
    pairs = (f"{_as_written(key, levels - 1)}: {_as_written(value, levels - 1)}" for key, value in node.value)
    return f"{{{', '.join(_cut(node.value, pairs))}}}"


def _cut(items: Sized, texts: Iterator[str]) -> list[str]:
    return [*islice(texts, _MOST_ITEMS), *(["…"] if len(items) > _MOST_ITEMS else [])]
