"""The reference of all configuration keys: default, description and the programs that use a key."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic.fields import FieldInfo

from fedmtl_core.config.adapters import AdaptersConfig
from fedmtl_core.config.clients import LocalClient, PartitionConfig
from fedmtl_core.config.root import Config
from fedmtl_core.config.schedule import ScheduleEntry
from fedmtl_core.config.section import ReadBy, Reader, Section
from fedmtl_core.config.tasks import AuxiliaryConfig, DataConfig, TaskConfig


class Setting(NamedTuple):
    """One key of the configuration."""

    key: str
    default: str
    """The default as YAML; `required` for a key without a default, empty for a default of null."""
    description: str
    read_by: tuple[Reader, ...]
    """The programs whose behavior the key's value changes."""


def reference() -> list[Setting]:
    """Return all keys of the configuration, section by section."""
    return [
        Setting(prefix + name, _default(field), field.description or "", _readers(section, field))
        for prefix, section in _sections(Config, "")
        for name, field in section.model_fields.items()
        if not _is_section(prefix, name, field)
    ]


def section_purposes() -> dict[str, str]:
    """Return the purpose of each section that has keys of its own, by the section's key, such as `sharing.adaptive`."""
    return {
        prefix.rstrip("."): " ".join((inspect.getdoc(section) or "").split("\n\n")[0].split())
        for prefix, section in _sections(Config, "")
        if prefix
    }


_NESTED: Mapping[str, type[Section]] = {
    "adapters": AdaptersConfig,
    "data": DataConfig,
    "auxiliary": AuxiliaryConfig,
    "partition": PartitionConfig,
}
_LISTED: Mapping[str, tuple[str, type[Section]]] = {
    "tasks": ("tasks.NAME.", TaskConfig),
    "clients": ("clients[].", LocalClient),
    "sharing.schedule": ("sharing.schedule[].", ScheduleEntry),
}
"""Collections of sections by key: the prefix of their keys, and the class of each section."""


def _sections(section: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    """Yield a section and the sections in it, each with the prefix of its keys."""
    yield prefix, section
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            yield from _sections(type(field.default), f"{prefix}{name}.")
        elif name in _NESTED:
            yield from _sections(_NESTED[name], f"{prefix}{name}.")
        elif prefix + name in _LISTED:
            inner, kind = _LISTED[prefix + name]
            yield from _sections(kind, inner)


def _is_section(prefix: str, name: str, field: FieldInfo) -> bool:
    """Whether a field is a section or a collection of sections; in inner sections `tasks` is a list of names."""
    return isinstance(field.default, Section) or name in _NESTED or prefix + name in _LISTED


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "" if field.default is None else str(field.default)


def _readers(section: type[Section], field: FieldInfo) -> tuple[Reader, ...]:
    own = next((one.readers for one in field.metadata if isinstance(one, ReadBy)), None)
    return section.read_by if own is None else own
