"""Configurations from files, command lines and programs, and in words what is wrong with them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fedmtl_core.config.clients import LocalClient, PartitionConfig
from fedmtl_core.config.section import SECRET, shown
from fedmtl_core.config.tasks import AuxiliaryConfig, DataConfig, TaskConfig
from fedmtl_core.config.whole import Config
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
    values = read_yaml(path) if path else {}
    source = str(path) if path else "the command line"
    for override in overrides:
        _apply(values, override)
    options = {key: f"--set {key}" for key in (override.partition("=")[0] for override in overrides)} | dict(named)
    return validated(values, source, options)


def resolve(given: Config | Mapping[str, Any] | Path | str | None) -> Config:
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


def validated(values: Mapping[str, Any], source: str, options: Mapping[str, str] = MappingProxyType({})) -> Config:
    """A configuration of sections that are at hand.

    Args:
        values: the sections.
        source: where they come from, for messages.
        options: by key, the option that set it instead.

    Raises:
        ConfigError: a key or value is wrong, as for `load`.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, source, options))) from None
    config.task_specs()
    return config


def dump(config: Config) -> str:
    """The configuration as YAML, defaults written out, such that `load` gives the same again."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's sections, as they stand there.

    Raises:
        ConfigError: it can't be read, or holds no sections.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't read the configuration: {_reason(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as `training:`, got {type(values).__name__}")
    return values


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key given twice is an error and not the loss of the first, and so is every text that
    has the form of a date or a number and is none."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            text = shown(node.value) if isinstance(node, yaml.ScalarNode) else "what is there"
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            reason = f"{text} can't be read as YAML's {kind}; put quotes around text"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            keys = [self.construct_object(key, deep=True) for key in own]
            counts = Counter(key for key in keys if isinstance(key, (str, int, float)))
            if twice := [key for key, count in counts.items() if count > 1]:
                reason = f"the key {shown(twice[0])} is there twice"
                raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """A YAML document's value.

    Raises:
        yaml.YAMLError: it is none.
    """
    try:
        return yaml.load(text, _Loader)  # nosec B506
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def _apply(values: dict[str, Any], override: str) -> None:
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
        values[last] = parse_yaml(text)
    except yaml.YAMLError:
        values[last] = text


def _explain(error: ValidationError, source: str, options: Mapping[str, str]) -> Iterator[str]:
    """Each problem with what it came from.

    Args:
        error: the problems.
        source: where the values came from.
        options: by key, the option that set it instead.
    """
    for problem in error.errors():
        path = _path(problem["loc"])
        is_unknown = problem["type"] == "extra_forbidden"
        place = next(
            (
                text + path.removeprefix(key) if f"{path}.".startswith(f"{key}.") else text
                for key, text in options.items()
                if f"{path}.".startswith(f"{key}.") or (is_unknown and key.startswith(f"{path}."))
            ),
            f"{source}: {path}" if path else source,
        )
        if is_unknown:
            yield f"{place}: unknown key; {_suggest(problem['loc'])}"
        elif problem["type"] == "missing":
            yield f"{place}: needed, and not given"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            is_silent = problem["type"] == SECRET or isinstance(problem["input"], (dict, BaseModel))
            got = "" if is_silent else f" (got {shown(problem['input'])})"
            yield f"{place}: {message[:1].lower()}{message[1:]}{got}"


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


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
