"""YAML documents: their values, and where in the text each of them stands."""

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
    """Where a value stands."""

    line: int | None
    """Counted from 1; None for the whole document."""
    text: str
    """The value as it stands there, cut where it is long: `no`, and not what YAML makes of it."""
    is_scalar: bool


@dataclass(frozen=True)
class Document:
    """One document."""

    values: object
    root: yaml.Node | None
    """None where there is nothing in it."""

    @property
    def sections(self) -> dict[str, object]:
        """The values of a document that `read` gave; empty where there is nothing in it."""
        return self.values if isinstance(self.values, dict) else {}

    def find(self, location: tuple[object, ...]) -> Place | None:
        """Where the value stands that pydantic's location leads to, or the last section on the way there."""
        node, line = self.root, None
        for part in location:
            if (found := _below(node, part)) is not None:  # else it names one of several types, or what is missing
                key, node = found
                line = key.start_mark.line + 1
        return None if node is None else _place(line, node)

    def find_key(self, location: tuple[object, ...]) -> Place | None:
        """Where the key stands that a location leads to."""
        node = self.root
        for part in location[:-1]:
            node = found[1] if (found := _below(node, part)) else None
        found = _below(node, location[-1])
        return None if found is None else _place(found[0].start_mark.line + 1, found[0])


def parse(text: str) -> Document:
    """A YAML document.

    Raises:
        yaml.YAMLError: it is none.
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
    """A YAML file of sections.

    Raises:
        ConfigError: it can't be read, or holds no sections.
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
        raise ConfigError(_told(path, error)) from None
    if document.values is not None and not isinstance(document.values, dict):
        raise ConfigError(f"{path}: expected sections such as `training:`, got {type(document.values).__name__}")
    return document


def shown_path(path: Path) -> str:
    """A path in a message: cut where it is longer than any that there can be, and printable."""
    text = str(path)
    text = text if len(text) <= 300 else f"{text[:140]}…{text[-140:]}"
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode() for one in text
    )


@dataclass(frozen=True)
class Explained:
    """What is wrong with a value, in words."""

    line: int | None
    """Where it stands, if it was read from a document."""
    text: str
    """What was expected, and what stands there."""


def explained(problem: ErrorDetails, document: Document, location: tuple[int | str, ...]) -> Explained:
    """One of pydantic's problems.

    Args:
        problem: which.
        document: what the values were read from.
        location: where it is in that.
    """
    place = document.find(location)
    line = place.line if place else None
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    message = message[:1].lower() + message[1:]
    if problem["type"] == "missing":
        return Explained(line, "needed, and not given")
    if problem["type"] == NOT_TEXT:
        context = problem["ctx"]
        find = document.find_key if context["is_key"] else document.find
        place = find((*location, *context["at"]))
        text = f"{context['expected']}; put quotes around {place.text if place else context['text']}"
        return Explained(place.line if place else line, text)
    if problem["type"] == SECRET or isinstance(value, (dict, BaseModel)):
        return Explained(line, message)
    fits = place is not None and place.is_scalar != isinstance(value, (list, tuple))
    message += f" (got {place.text if place and fits else shown(value)})"
    if problem["type"] == "string_type" and value is not None and not isinstance(value, (list, tuple)):
        message += "; put quotes around text"
    return Explained(line, message)


def place_text(name: str, line: int | None, key: str) -> str:
    """Where a value stands, for the beginning of a message: `FILE:LINE: KEY`, as far as it is known."""
    place = name if line is None else f"{name}:{line}"
    return f"{place}: {key}" if key else place


class _Refused(yaml.constructor.ConstructorError):
    """A text that is YAML, and that we don't take."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but these are errors: a key given twice, which would be the loss of the first; a text that
    has the form of a date or a number and is none; a number that hardly anybody reads as YAML 1.1 does."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            text = shown(node.value) if isinstance(node, yaml.ScalarNode) else "what is there"
            kind = node.tag.removeprefix(_TAG)
            raise _refused(f"{text} can't be read as YAML's {kind}; put quotes around text", node) from None

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it stands there, before others are merged into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                continue
            value, line = (key.tag, key.value), key.start_mark.line + 1
            if value in lines:
                first = lines[value]
                where = f"twice on line {line}" if first == line else f"twice, on lines {first} and {line}"
                raise _refused(f"the key {_as_it_stands(key, 1)} is there {where}", key)
            lines[value] = line
        return node

    def construct_plain_number(self, node: yaml.ScalarNode) -> int | float:
        """A number, unless it is in base 60 or has the form of an octal one."""
        is_integer = node.tag == f"{_TAG}int"
        value = self.construct_yaml_int(node) if is_integer else self.construct_yaml_float(node)
        text = shown(node.value).strip("'\"")
        base = "in base 60" if ":" in node.value else "in base 8" if is_integer and _OCTAL.fullmatch(node.value) else ""
        if base:
            raise _refused(
                f"YAML reads {text} as a number {base}, {shown(value)}; write {shown(value)} if that is meant, or put "
                "quotes around text",
                node,
            )
        return value


_Loader.add_constructor(f"{_TAG}int", _Loader.construct_plain_number)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_plain_number)


def _refused(reason: str, node: yaml.Node) -> _Refused:
    return _Refused(None, None, reason, node.start_mark)


def _told(path: Path, error: yaml.YAMLError) -> str:
    """What is wrong with a file, and in which line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    if isinstance(error, _Refused):
        return f"{place}: {error.problem}"
    if isinstance(error, yaml.MarkedYAMLError):
        context = f"{error.context}: " if error.context else ""
        return f"{place}: not valid YAML: {context}{error.problem}"
    return f"{place}: not valid YAML: {' '.join(str(error).split())}"


def _below(node: yaml.Node | None, part: object) -> tuple[yaml.Node, yaml.Node] | None:
    """What a key or a number leads to from a node: the key's node, or the item's, and the value's."""
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # what was merged into it comes first
            if isinstance(key, yaml.ScalarNode) and (key.value == str(part) or _is(key, part)):
                return key, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _is(key: yaml.ScalarNode, part: object) -> bool:
    """Whether a key that isn't text, such as `no`, is read as this."""
    return key.tag != f"{_TAG}str" and parse(key.value).values is part


def _place(line: int | None, node: yaml.Node) -> Place:
    return Place(line, _as_it_stands(node, _MOST_LEVELS) or "nothing", isinstance(node, yaml.ScalarNode))


def _as_it_stands(node: yaml.Node, levels: int) -> str:
    if isinstance(node, yaml.ScalarNode):
        if node.tag == f"{_TAG}str":
            return shown(node.value)
        return node.value if len(node.value) <= _MOST_CHARACTERS else f"{node.value[:_MOST_CHARACTERS]}…"
    if levels == 0:
        return "…"
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(_cut(node.value, (_as_it_stands(one, levels - 1) for one in node.value)))}]"
    pairs = (f"{_as_it_stands(key, levels - 1)}: {_as_it_stands(value, levels - 1)}" for key, value in node.value)
    return f"{{{', '.join(_cut(node.value, pairs))}}}"


def _cut(items: Sized, texts: Iterator[str]) -> list[str]:
    return [*islice(texts, _MOST_ITEMS), *(["…"] if len(items) > _MOST_ITEMS else [])]
