"""The adapters of a new run that starts from another run's model: they must be that run's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.wire.layout import Component


def require_same_adapters(key: str, folder: Path, theirs: Config, mine: Config) -> None:
    """Check that the adapters of two runs can have each other's values. Dropout and the way to average may differ.

    Args:
        key: the setting that names the other run, for messages.
        folder: the other run's folder.
        theirs: the other run's configuration.
        mine: the new run's configuration.

    Raises:
        ConfigError: only one of the runs has adapters, their settings differ, or adapters are stacked.
    """
    other, own = theirs.adapters(), mine.adapters()
    if other is None and own is None:
        return
    instead = (
        f"Export the model of that run with `fedmtl-server export --all DIR --run-dir {folder}`, and name DIR/encoder "
        f"in model.server_model instead of {key}"
    )
    if other is None:
        raise ConfigError(f"{key}: the run in {folder} has no adapters, but this one has (model.adapters). {instead}")
    if own is None:
        raise ConfigError(
            f"{key}: the run in {folder} has adapters, but this one hasn't. {instead}; the export adds the adapters to "
            "the encoder's weights"
        )
    aggregations = [one.model.adapters.aggregation if one.model.adapters is not None else "" for one in (theirs, mine)]
    if "stack" in aggregations:
        raise ConfigError(
            f"{key}: with `model.adapters.aggregation: stack` each round adds its adapters to the encoder's weights, "
            f"and starts new ones. {instead}"
        )
    differing = {
        "kind": (other.kind, own.kind),
        "rank": (other.rank, own.rank),
        "alpha": (other.alpha, own.alpha),
        "aggregation": tuple(aggregations) if other.a_is_frozen != own.a_is_frozen else ("", ""),
    }
    if found := [f"{name}: expected {old}, got {new}" for name, (old, new) in differing.items() if old != new]:
        raise ConfigError(f"{key}: the run in {folder} has other model.adapters: {'; '.join(found)}. {instead}")


def require_same_base(key: str, folder: Path, theirs: Mapping[str, Component], mine: Mapping[str, Component]) -> None:
    """Check that the parameters beside the adapters are bitwise the same in two runs.

    Raises:
        ConfigError: they differ; the message names the first tensor that does.
    """
    values, own = (
        {name: view for one in base.values() for name, view in one.views().items()} for base in (theirs, mine)
    )
    names = [name for name in values if name not in own or not torch.equal(values[name], own[name])]
    if names:
        raise ConfigError(
            f"{key}: the adapters of the run in {folder} are made for other weights than those of model.server_model: "
            f"{names[0]} is the first of {len(names)} tensors that differ. Name that run's model.server_model; random "
            "weights, and the factors A of `aggregation: freeze_a`, depend on training.seed too"
        )
