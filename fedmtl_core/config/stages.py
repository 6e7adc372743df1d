"""The stages of the aggregation, in their order: what each requires of a run, and what it takes from the others.

The server's stage classes take their rule from here; a configuration is checked by the same rules, so that what can't
go together is stated once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType


class Property(Enum):
    """What a stage may rely on, unless a setting or another stage takes it away."""

    SYNCHRONOUS = "all updates of a round start from the same model"
    ONE_TASK_PER_CLIENT = "a client has one task for the whole run"
    WHOLE_UPDATES = "an update counts as it was sent"
    EXAMPLE_WEIGHTS = "a client weighs as many examples as it was trained on, whatever its task"
    FIXED_SCOPES = "a parameter stays in its component"
    SGD_STEPS = "an update is a sum of gradients, each times a learning rate"
    TASKS_TOGETHER = "a component's updates are taken together, whatever their tasks"
    MEAN = "a component becomes the weighted mean of its updates"
    WHOLE_STEPS = "each of a client's steps moves all parameters"


@dataclass(frozen=True)
class StageRule:
    """One stage, as far as a configuration has to know it."""

    name: str
    """The key of the stage's state, of its numbers among an update's extras, and of its part in the report."""
    key: str
    """The setting that asks for the stage."""
    requires: Mapping[Property, str] = field(default_factory=lambda: MappingProxyType({}))
    """What the stage relies on, each with the reason."""
    breaks: frozenset[Property] = frozenset()
    """What the stage may take from the others, with some of its settings; see `Breach`."""


CLIENT_SHARES = StageRule("client_shares", "robustness.max_client_share")
NORMS = StageRule("norms", "robustness.norms", breaks=frozenset({Property.WHOLE_UPDATES}))
NORMALIZATION = StageRule(
    "normalization",
    "aggregation.normalization",
    requires=MappingProxyType({Property.MEAN: "deltas are averaged by step"}),
)
RULE = StageRule(
    "rule",
    "aggregation.rule",
    requires=MappingProxyType({Property.TASKS_TOGETHER: "it takes the updates of all tasks together"}),
    breaks=frozenset({Property.MEAN}),
)
TASK_WEIGHTING = StageRule(
    "task_weighting",
    "aggregation.task_weighting",
    breaks=frozenset({Property.EXAMPLE_WEIGHTS, Property.TASKS_TOGETHER}),
)
AUXILIARY = StageRule("auxiliary", "tasks.NAME.auxiliary", breaks=frozenset({Property.EXAMPLE_WEIGHTS}))
SERVER_OPTIMIZER = StageRule("server_optimizer", "server_optimizer.name")
CONTROL_VARIATES = StageRule(
    "control_variates",
    "training.control_variates",
    requires=MappingProxyType(
        {
            Property.SGD_STEPS: "they are sums of its steps",
            Property.SYNCHRONOUS: "all clients have to start from the same ones",
            Property.EXAMPLE_WEIGHTS: "they weigh clients by their examples",
            Property.MEAN: "they correct clients towards the mean of all",
            Property.WHOLE_STEPS: "every step has to be of all parameters",
            Property.FIXED_SCOPES: "they are of components that stay",
            Property.ONE_TASK_PER_CLIENT: "a client's is of one task",
            Property.WHOLE_UPDATES: "they are of whole updates",
        }
    ),
)
SHARING = StageRule(
    "sharing",
    "sharing.adaptive",
    requires=MappingProxyType({Property.SYNCHRONOUS: "layers can't move under updates that start from older models"}),
    breaks=frozenset({Property.FIXED_SCOPES, Property.TASKS_TOGETHER}),
)

STAGES = (
    CLIENT_SHARES,
    NORMS,
    NORMALIZATION,
    RULE,
    TASK_WEIGHTING,
    AUXILIARY,
    SERVER_OPTIMIZER,
    CONTROL_VARIATES,
    SHARING,
)
"""All stages there are, in the order in which they see an update, and what becomes of it."""


@dataclass(frozen=True)
class Breach:
    """A setting that takes a property away."""

    property: Property
    needed: str
    """The setting with which the property would be there."""
    got: str = ""
    """What the setting is instead."""
    stage: StageRule | None = None
    """Whose setting it is, if it is a stage's."""

    def __post_init__(self) -> None:
        if self.stage is not None and self.property not in self.stage.breaks:
            raise ValueError(f"{self.stage.name} isn't said to break {self.property.name}")


def require_compatible(wanted: Iterable[StageRule], breaches: Iterable[Breach]) -> None:
    """Check that no stage lacks what it requires.

    Args:
        wanted: the stages of a configuration.
        breaches: what in that configuration takes properties away.

    Raises:
        ValueError: a stage does; with the setting that asks for the stage, and the one that is in its way.
    """
    all_breaches = list(breaches)
    for stage in wanted:
        for breach in all_breaches:
            if breach.property in stage.requires:
                got = f", got {breach.got}" if breach.got else ""
                raise ValueError(f"{stage.key}: needs {breach.needed}{got}: {stage.requires[breach.property]}")
