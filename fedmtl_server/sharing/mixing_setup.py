"""Builds the stage that mixes other tasks' updates into a task's own layers from the configuration."""

from __future__ import annotations

from collections.abc import Sequence

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.model.sharing import movable_parts
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_server.model_parts import ModelParts
from fedmtl_server.sharing.selection_rules import selection_rules
from fedmtl_server.sharing.source_mixing import SourceMixing


def make_source_mixing(config: Config, parts: ModelParts) -> SourceMixing:
    """Return the stage that `sharing.adaptive.policy: validated` configures.

    Raises:
        ConfigError: `sharing.adaptive.layers` names a layer that the encoder does not have, or no part is mixed.
    """
    kin, auxiliary = kin_of(config.task_specs()), config.auxiliary_tasks()
    return SourceMixing(parts, mixed_parts(config, parts), kin, auxiliary, selection_rules(config))


def mixed_parts(config: Config, parts: ModelParts) -> dict[str, tuple[str, ...]]:
    """Return the parts of the encoder that the stage mixes, with the parameters of each part.

    Raises:
        ConfigError: `sharing.adaptive.layers` names a layer that the encoder does not have, or no part is mixed.
    """
    mixed = parts.movable(movable_parts(config.sharing.rules(), config.sharing.adaptive.layers))
    if not mixed:
        raise ConfigError(
            "sharing.adaptive.policy: `validated` needs a part of the encoder that neither `sharing.layers` nor "
            "`sharing.norms` fixes, and that `sharing.adaptive.layers` names if it is given; there is none"
        )
    return mixed


def kin_of(specs: Sequence[TaskSpec]) -> dict[str, list[str]]:
    """Return, by task, the other tasks of the same type, with as many texts and as many labels."""

    def traits(spec: TaskSpec) -> tuple[str, int, int]:
        return spec.kind, len(spec.text_columns), len(spec.labels)

    return {
        one.name: [other.name for other in specs if other.name != one.name and traits(other) == traits(one)]
        for one in specs
    }
