"""The configuration's own documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import BaseModel

from fedmtl_core.config.clients import LocalClient, PartitionConfig
from fedmtl_core.config.root import Config
from fedmtl_core.config.section import Section
from fedmtl_core.config.tasks import AuxiliaryConfig, DataConfig, TaskConfig


class Setting(NamedTuple):
    """One key of the configuration."""

    key: str
    default: str
    description: str


def reference() -> list[Setting]:
    """Every key there is, with its default."""
    return list(_settings(Config, ""))


def _settings(section: type[BaseModel], prefix: str) -> Iterator[Setting]:
    nested: Mapping[str, tuple[type[BaseModel], str]] = {
        "data": (DataConfig, prefix + "data."),
        "auxiliary": (AuxiliaryConfig, prefix + "auxiliary."),
        "partition": (PartitionConfig, prefix + "partition."),
    }
    if not prefix:  # elsewhere `tasks` are names
        nested = {**nested, "tasks": (TaskConfig, "tasks.NAME."), "clients": (LocalClient, "clients[].")}
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            yield from _settings(type(field.default), f"{prefix}{name}.")
        elif name in nested:
            yield from _settings(*nested[name])
        else:
            default = "required" if field.is_required() else "" if field.default is None else str(field.default)
            yield Setting(prefix + name, default, field.description or "")
