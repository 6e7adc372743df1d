"""The aggregation stages in their order: the properties that each stage requires, and those that it may break.

The server's stage classes and the validation of a configuration use the same rules, so that each incompatibility is
stated once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType


class Property(Enum):
    """An assumption that a stage may make, unless a setting or another stage breaks it."""

    SYNCHRONOUS = "all updates of a round start from the same model"
    ONE_TASK_PER_CLIENT = "a client has one task for the whole run"
    WHOLE_UPDATES = "an update counts as sent, without clipping"
    EXAMPLE_WEIGHTS = "a client's weight is the number of examples it trained on, whatever its task"
    FIXED_SCOPES = "a parameter stays in its component"
    SGD_STEPS = "an update is a sum of gradients, each multiplied by a learning rate"
    TASKS_TOGETHER = "a component's updates are combined together, whatever their tasks"
    MEAN = "a component becomes the weighted mean of its updates"
    WHOLE_STEPS = "each step of a client changes all parameters"
    OWN_UPDATES = "a task's component takes updates of the task's clients only"


@dataclass(frozen=True)
class StageRule:
    """One aggregation stage, described for the validation of a configuration."""

    name: str
    """The key of the stage's state, of its numbers in an update's extras, and of its part in the report."""
    key: str
    """The configuration key that enables the stage."""
    requires: Mapping[Property, str] = field(default_factory=lambda: MappingProxyType({}))
    """The properties that the stage requires, each with the reason."""
    breaks: frozenset[Property] = frozenset()
    """The properties that some settings of the stage break for other stages; see `Breach`."""


CLIENT_SHARES = StageRule("client_shares", "robustness.max_client_share")
NORMS = StageRule("norms", "robustness.norms", breaks=frozenset({Property.WHOLE_UPDATES}))
NORMALIZATION = StageRule(
    "normalization",
    "aggregation.normalization",
    requires=MappingProxyType({Property.MEAN: "fednova averages deltas per step"}),
)
ADAPTERS = StageRule(
    "adapters",
    "model.adapters.aggregation",
    requires=MappingProxyType(
        {
            Property.SYNCHRONOUS: "all clients must train the same factors from the same model",
            Property.FIXED_SCOPES: "a factor stays in its component",
            Property.OWN_UPDATES: "a task's factors are combined by themselves",
            Property.MEAN: "it combines factors in its own way",
        }
    ),
    breaks=frozenset({Property.SGD_STEPS, Property.WHOLE_STEPS}),
)
"""Every aggregation of adapters that isn't an average of the same factors in each round."""
RULE = StageRule(
    "rule",
    "aggregation.rule",
    requires=MappingProxyType({Property.TASKS_TOGETHER: "a rule combines the updates of all tasks together"}),
    breaks=frozenset({Property.MEAN}),
)
TASK_WEIGHTING = StageRule(
    "task_weighting",
    "aggregation.task_weighting",
    breaks=frozenset({Property.EXAMPLE_WEIGHTS, Property.TASKS_TOGETHER}),
)
AUXILIARY = StageRule("auxiliary", "tasks.NAME.auxiliary", breaks=frozenset({Property.EXAMPLE_WEIGHTS}))
SCALING = StageRule(
    "scaling",
    "aggregation.scaling",
    breaks=frozenset({Property.EXAMPLE_WEIGHTS, Property.TASKS_TOGETHER}),
)
SERVER_OPTIMIZER = StageRule("server_optimizer", "server_optimizer.name")
CONTROL_VARIATES = StageRule(
    "control_variates",
    "training.control_variates",
    requires=MappingProxyType(
        {
            Property.SGD_STEPS: "control variates are sums of SGD steps",
            Property.SYNCHRONOUS: "all clients must start from the same control variates",
            Property.EXAMPLE_WEIGHTS: "control variates weight clients by their examples",
            Property.MEAN: "control variates correct clients towards the mean of all clients",
            Property.WHOLE_STEPS: "every step must change all parameters",
            Property.FIXED_SCOPES: "control variates belong to components that don't change",
            Property.ONE_TASK_PER_CLIENT: "a client's control variate belongs to one task",
            Property.WHOLE_UPDATES: "control variates need unclipped updates",
            Property.OWN_UPDATES: "control variates correct the updates of a component's own clients",
        }
    ),
)
SOURCES = StageRule(
    "sources",
    "sharing.adaptive.policy: validated",
    requires=MappingProxyType(
        {
            Property.SYNCHRONOUS: "tasks' updates of one round are mixed",
            Property.FIXED_SCOPES: "each task has layers of its own for the whole run",
        }
    ),
    breaks=frozenset({Property.OWN_UPDATES}),
)
AUTO = replace(
    SOURCES,
    key="sharing: auto",
    requires=MappingProxyType({one: f"{reason}; or set `sharing: plain`" for one, reason in SOURCES.requires.items()}),
)
"""The stage `SOURCES` as `sharing: auto` enables it."""
SHARING = StageRule(
    "sharing",
    "sharing.adaptive",
    requires=MappingProxyType(
        {Property.SYNCHRONOUS: "layers can't be regrouped for updates that start from older models"}
    ),
    breaks=frozenset({Property.FIXED_SCOPES, Property.TASKS_TOGETHER}),
)
SCHEDULE = replace(SHARING, key="sharing.schedule", breaks=frozenset({Property.FIXED_SCOPES}))
"""The stage `SHARING` as `sharing.schedule` enables it. A schedule doesn't compare the tasks' updates."""

STAGES = (
    CLIENT_SHARES,
    NORMS,
    NORMALIZATION,
    RULE,
    TASK_WEIGHTING,
    AUXILIARY,
    SCALING,
    ADAPTERS,
    SERVER_OPTIMIZER,
    SOURCES,
    CONTROL_VARIATES,
    SHARING,
)
"""All stages, in the order in which they process an update and its results."""


@dataclass(frozen=True)
class Breach:
    """A setting that breaks a property."""

    property: Property
    needed: str
    """The setting that would keep the property."""
    got: str = ""
    """The setting's actual value; empty if the message doesn't show it."""
    stage: StageRule | None = None
    """The stage that the setting belongs to; None for a setting of another part."""

    def __post_init__(self) -> None:
        if self.stage is not None and self.property not in self.stage.breaks:
            raise ValueError(f"the stage {self.stage.name} doesn't list {self.property.name} in `breaks`")


def require_compatible(wanted: Iterable[StageRule], breaches: Iterable[Breach]) -> None:
    """Check that the properties that stages require hold.

    Args:
        wanted: the stages that a configuration enables.
        breaches: the configuration's settings that break properties.

    Raises:
        ValueError: a required property is broken. The message names the setting that enables the stage, and the
            setting that breaks the property.
    """
    all_breaches = list(breaches)
    for stage in wanted:
        for breach in all_breaches:
            if breach.property in stage.requires:
                got = f", got {breach.got}" if breach.got else ""
                raise ValueError(f"{stage.key}: needs {breach.needed}{got}: {stage.requires[breach.property]}")
