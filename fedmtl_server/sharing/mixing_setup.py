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
    specs = config.task_specs()
    return SourceMixing(
        parts,
        mixed_parts(config, parts),
        kin=kin_of(specs),
        auxiliary=config.auxiliary_tasks(),
        main_metrics={spec.name: spec.main_metric for spec in specs},
        rules=selection_rules(config),
    )


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
    """Return, by task, the other tasks of the same form."""
    return {
        one.name: [other.name for other in specs if other.name != one.name and other.form == one.form] for one in specs
    }
