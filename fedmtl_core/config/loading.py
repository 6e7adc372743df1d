"""Loading of configurations from files, command lines and programs, with messages for invalid ones."""

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
from fedmtl_core.config.schedule import ScheduleEntry
from fedmtl_core.config.sharing import sharing_keys
from fedmtl_core.config.tasks import AuxiliaryConfig, DataConfig, TaskConfig
from fedmtl_core.errors import ConfigError

_RENAMED = {"batch_size": "per_device_train_batch_size"}
"""Common wrong names of keys with the right key, for hints in error messages."""


def load(path: Path | None, overrides: Sequence[str] = (), named: Mapping[str, str] = MappingProxyType({})) -> Config:
    """Read a configuration file.

    Args:
        path: a YAML file; None loads the defaults.
        overrides: `KEY=VALUE` texts, with a dotted path such as `training.num_rounds` as KEY. They take precedence over
            the file.
        named: for overrides that come from another option than `--set`, the option by KEY, for messages.

    Raises:
        ConfigError: the file can't be read, or a key or value is invalid. The message gives the key's path, the value
            and the allowed values.
    """
    document = documents.read(path) if path else Document({}, None)
    values = document.sections
    sources = [_Source("", str(path) if path else "the command line", document)]
    for override in overrides:
        key = override.partition("=")[0]
        sources.append(_Source(key, named.get(key, f"--set {key}"), _apply(values, override)))
    return _validated(values, sources)


def resolve(given: Config | Mapping[str, object] | Path | str | None) -> Config:
    """Return the configuration for a `Config`, nested dictionaries, a YAML file's path, or None for the defaults.

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
    """Validate a configuration that is given as sections.

    Args:
        values: the sections.
        source: the origin of the sections, for messages.

    Raises:
        ConfigError: a key or value is invalid, as for `load`.
    """
    return _validated(values, [_Source("", source, Document(values, None))])


@dataclass(frozen=True)
class _Source:
    """The origin of a part of a configuration."""

    key: str
    """The key that this source sets; empty for a source of all keys."""
    name: str
    """The file or option, for messages."""
    document: Document

    def has(self, path: str, *, unknown: bool) -> bool:
        """Whether this source sets a key. An unknown key may also be a section above the source's key."""
        return self.is_above(path) or (unknown and self.key.startswith(f"{path}."))

    def is_above(self, path: str) -> bool:
        """Whether a key is the source's key or lies below it."""
        return not self.key or path == self.key or path.startswith((f"{self.key}.", f"{self.key}["))

    def place(self, path: str, line: int | None) -> str:
        """Return the place of a key's value, for messages."""
        if self.key:
            return self.name + (path.removeprefix(self.key) if self.is_above(path) else "")
        return documents.place_text(self.name, line, path)

    def below(self, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """Return a location relative to the source's document."""
        return location[len(self.key.split(".")) :] if self.key else location


def _validated(values: Mapping[str, object], sources: Sequence[_Source]) -> Config:
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, sources))) from None
    config.task_specs()
    return config


def dump(config: Config) -> str:
    """Return the configuration as YAML with all defaults. `load` reads it back to an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)


def _apply(values: dict[str, object], override: str) -> Document:
    """Apply an override to the values; return the override's value as a document."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set: expected KEY=VALUE, such as training.num_rounds=5, got {override!r}")
    *sections, last = key.split(".")
    if sections and sections[0] == "sharing":
        values["sharing"] = sharing_keys(values.get("sharing", {}))
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
    """Yield a message with its place for each problem.

    Args:
        error: the problems.
        sources: the origins of the values; later sources take precedence.
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
    """Return the keys that are allowed in the section of a location."""
    path = _path(location[:-1])
    if not path:
        return list(Config.model_fields)
    parts = path.split(".")
    if parts[0] == "tasks":
        inner: Mapping[str, type[BaseModel]] = {"data": DataConfig, "auxiliary": AuxiliaryConfig}
        return list((inner.get(parts[-1], TaskConfig) if len(parts) > 2 else TaskConfig).model_fields)
    if parts[0].startswith("clients"):
        return list((PartitionConfig if parts[-1] == "partition" else LocalClient).model_fields)
    if path.startswith("sharing.schedule["):
        return list(ScheduleEntry.model_fields)
    section: type[BaseModel] = Config
    for part in parts:
        section = type(section.model_fields[part].default)
    return list(section.model_fields)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
