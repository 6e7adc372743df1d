"""Configurations from files, command lines and programs, and in words what is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import yaml
from pydantic import BaseModel, ValidationError

from fedmtl_core.config import documents
from fedmtl_core.config.clients import LocalClient, PartitionConfig
from fedmtl_core.config.documents import Document
from fedmtl_core.config.root import Config
from fedmtl_core.config.tasks import AuxiliaryConfig, DataConfig, TaskConfig
from fedmtl_core.errors import ConfigError

_RENAMED = {"batch_size": "per_device_train_batch_size"}
"""Keys that other names are given for, in the hints of errors alone."""


def load(path: Path | None, overrides: Sequence[str] = (), named: Mapping[str, str] = MappingProxyType({})) -> Config:
    """Read a configuration file.

    Args:
        path: a YAML file, or None for defaults alone.
        overrides: `KEY=VALUE` each, where KEY is a dotted path such as `training.num_rounds`; they win.
        named: by KEY, the command line's option that an override came from where it isn't `--set`, for messages.

    Raises:
        ConfigError: the file can't be read, or a key or value is wrong; the message gives the key's path,
            the value and what is allowed.
    """
    document = documents.read(path) if path else Document({}, None)
    values = document.sections
    sources = [_Source("", str(path) if path else "the command line", document)]
    for override in overrides:
        key = override.partition("=")[0]
        sources.append(_Source(key, named.get(key, f"--set {key}"), _apply(values, override)))
    return _validated(values, sources)


def resolve(given: Config | Mapping[str, object] | Path | str | None) -> Config:
    """A configuration however a program gives it: as it is, as nested dictionaries, or as a YAML file's path.

    Raises:
        ConfigError: as for `load`.
    """
    if isinstance(given, Config):
        given.task_specs()
        return given
    if isinstance(given, Mapping):
        return validated(given, "the configuration")
    if given is None or isinstance(given, (Path, str)):
        return load(None if given is None else Path(given))
    raise ConfigError(f"expected a Config, a dictionary or a YAML file's path, got {type(given).__name__}")


def validated(values: Mapping[str, object], source: str) -> Config:
    """A configuration of sections that are at hand.

    Args:
        values: the sections.
        source: where they come from, for messages.

    Raises:
        ConfigError: a key or value is wrong, as for `load`.
    """
    return _validated(values, [_Source("", source, Document(values, None))])


@dataclass(frozen=True)
class _Source:
    """Where a part of a configuration comes from."""

    key: str
    """The key that it sets; empty for all of them."""
    name: str
    """For messages: a file, or an option."""
    document: Document

    def has(self, path: str, *, unknown: bool) -> bool:
        """Whether a key is set by this; an unknown one may also be a section above the key that is."""
        return self.is_above(path) or (unknown and self.key.startswith(f"{path}."))

    def is_above(self, path: str) -> bool:
        """Whether a key is the one that this sets, or lies below it."""
        return not self.key or path == self.key or path.startswith((f"{self.key}.", f"{self.key}["))

    def place(self, path: str, line: int | None) -> str:
        """Where the value of a key was given, for messages."""
        if self.key:
            return self.name + (path.removeprefix(self.key) if self.is_above(path) else "")
        return documents.place_text(self.name, line, path)

    def below(self, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """A location as it is within the document."""
        return location[len(self.key.split(".")) :] if self.key else location


def _validated(values: Mapping[str, object], sources: Sequence[_Source]) -> Config:
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, sources))) from None
    config.task_specs()
    return config


def dump(config: Config) -> str:
    """The configuration as YAML, defaults written out, such that `load` gives the same again."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)


def _apply(values: dict[str, object], override: str) -> Document:
    """Set what an override says; returns its value."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set: expected KEY=VALUE, such as training.num_rounds=5, got {override!r}")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    try:
        document = documents.parse(text)
    except yaml.YAMLError:
        document = Document(text, None)
    values[last] = document.values
    return document


def _explain(error: ValidationError, sources: Sequence[_Source]) -> Iterator[str]:
    """Each problem with where it stands.

    Args:
        error: the problems.
        sources: where the values came from; the later ones win.
    """
    for problem in error.errors():
        path = _path(problem["loc"])
        is_unknown = problem["type"] == "extra_forbidden"
        source = next(one for one in reversed(sources) if one.has(path, unknown=is_unknown))
        found = documents.explained(problem, source.document, source.below(problem["loc"]))
        text = f"unknown key; {_suggest(problem['loc'])}" if is_unknown else found.text
        yield f"{source.place(path, found.line)}: {text}"


def _suggest(location: tuple[int | str, ...]) -> str:
    known = _keys_beside(location)
    name = str(location[-1])[:100]
    close = [_RENAMED[name]] if _RENAMED.get(name) in known else difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"Allowed: {', '.join(known)}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """Names of the keys allowed in the section that a location lies in."""
    path = _path(location[:-1])
    if not path:
        return list(Config.model_fields)
    parts = path.split(".")
    if parts[0] == "tasks":
        inner: Mapping[str, type[BaseModel]] = {"data": DataConfig, "auxiliary": AuxiliaryConfig}
        return list((inner.get(parts[-1], TaskConfig) if len(parts) > 2 else TaskConfig).model_fields)
    if parts[0].startswith("clients"):
        return list((PartitionConfig if parts[-1] == "partition" else LocalClient).model_fields)
    section: type[BaseModel] = Config
    for part in parts:
        section = type(section.model_fields[part].default)
    return list(section.model_fields)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
