"""Task definitions: type, columns, labels and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks.evaluation import BUILT_IN_BOUNDS, Bounds
from fedmtl_core.tasks.labels import MAX_SHOWN, Values

HeadInit = Literal["task", "form"]
"""The tasks whose heads start with the same values: none, or those of the same form (`TaskSpec.form`)."""

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman", "masked_accuracy")
"""The metrics that a task may name: GLUE's metrics (Wang et al. 2019, arXiv:1804.07461), and the share of masked tokens
that are predicted correctly."""

METRICS_OF: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman"),
    "masked_lm": ("masked_accuracy",),
}
"""The metrics of each built-in task type."""


@dataclass(frozen=True)
class Traits:
    """The properties of a task type that need neither its class nor PyTorch."""

    kind: str
    """The type's name in the contract: the same on the server and on clients."""
    metrics: tuple[str, ...]
    """Names of the metrics that a task of this type may have; the first is the default."""
    has_labels: bool
    """Whether a task of this type has classes."""
    is_labelled: bool
    """Whether rows of a task of this type have a label."""
    metric_bounds: Mapping[str, Bounds]
    """The lowest and the highest value of each metric whose bounds are known, by the metric's name."""


BUILT_IN: Mapping[str, Traits] = {
    type_: Traits(type_, metrics, type_ == "classification", type_ != "masked_lm", BUILT_IN_BOUNDS)
    for type_, metrics in METRICS_OF.items()
}
"""The traits of the built-in task types, by type."""


@dataclass(frozen=True)
class TaskSpec:
    """One task, as defined on the server and on its clients."""

    name: str
    type: str
    """`classification`, `regression`, `masked_lm`, or `module:Name` for a user's subclass of
    `fedmtl_core.tasks.kinds.TaskKind`."""
    text_columns: tuple[str, ...]
    """One text column, or two columns whose texts form a pair."""
    label_column: str
    """Empty for a task type without labels."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers. Empty for a task type without classes."""
    metrics: tuple[str, ...] = ()
    """The first metric is the task's main metric, which tables, plots and early stopping use. Higher is better."""
    hub: tuple[str, str] | None = None
    """The task's data set on the hub: repository and configuration."""
    hub_splits: tuple[str, str] = ("train", "validation")
    """Names of the training and evaluation splits on the hub."""
    value_range: tuple[float, float] | None = None
    """The lowest and the highest value of a regression, whose head starts in the middle. None if unknown."""
    traits: Traits | None = field(default=None, compare=False, repr=False)
    """The type's traits, from `fedmtl_core.tasks.registry.traits_of`. Required for a plug-in; a built-in type has its
    own."""
    kind: str = field(init=False)
    """The type's name that server and clients compare; for a plug-in, the name that its class gives."""
    metric_bounds: Mapping[str, Bounds] = field(init=False, compare=False, repr=False)
    """The lowest and the highest value of each metric whose bounds are known, by name."""

    def __post_init__(self) -> None:
        traits = BUILT_IN.get(self.type, self.traits)
        if traits is None:
            raise ConfigError(f"tasks.{self.name}.type: {self.type} isn't built in, and has no traits")
        object.__setattr__(self, "traits", traits)
        object.__setattr__(self, "kind", traits.kind)
        object.__setattr__(self, "metric_bounds", traits.metric_bounds)
        if not self.metrics:
            object.__setattr__(self, "metrics", traits.metrics[:1])
        self._require_consistent(traits)

    def _require_consistent(self, traits: Traits) -> None:
        """Check that the fields suit the type and each other.

        Raises:
            ConfigError: they don't; the message names the first wrong field.
        """
        kind, has_labels = traits.kind, traits.has_labels
        if bool(self.label_column) != traits.is_labelled:
            expected = "needs" if traits.is_labelled else "has no"
            raise ConfigError(f"tasks.{self.name}: a {kind} task {expected} `label_column`, got {self.label_column!r}")
        if has_labels and len(self.labels) < 2:
            raise ConfigError(f"tasks.{self.name}: a {kind} task needs at least 2 labels, got {len(self.labels)}")
        if not has_labels and self.labels:
            raise ConfigError(f"tasks.{self.name}: a {kind} task has no labels, got {list(self.labels)}")
        if same := Values(self.labels).first_repeated():
            raise ConfigError(
                f"tasks.{self.name}: labels must differ, also as numbers and without surrounding white space, "
                f"got {same[0]!r} and {same[1]!r}"
            )
        if len(self.text_columns) not in (1, 2):
            raise ConfigError(f"tasks.{self.name}: expected 1 or 2 text columns, got {list(self.text_columns)}")
        if self.value_range is not None:
            if has_labels or not traits.is_labelled:
                raise ConfigError(f"tasks.{self.name}.value_range: a {kind} task has no values; leave it out")
            if not self.value_range[0] < self.value_range[1]:
                raise ConfigError(
                    f"tasks.{self.name}.value_range: expected the lowest value, then the highest, got "
                    f"{list(self.value_range)}"
                )
        for metric in self.metrics:
            if metric not in traits.metrics:
                raise ConfigError(
                    f"tasks.{self.name}: metric {metric!r} doesn't fit a {kind} task; expected one of "
                    f"{', '.join(traits.metrics)}"
                )
            if self.type == "classification" and metric == "f1" and len(self.labels) != 2:
                raise ConfigError(f"tasks.{self.name}: the metric f1 needs exactly 2 labels, got {len(self.labels)}")

    @property
    def form(self) -> tuple[str, int, int]:
        """The task's type, its number of text columns and its number of labels. Tasks of the same form may be related.
        Heads of a built-in type then have the same shapes."""
        return self.kind, len(self.text_columns), len(self.labels)

    @property
    def num_outputs(self) -> int:
        """Width of a linear head: the number of classes, or 1 for a regression."""
        return len(self.labels) or 1

    @property
    def is_labelled(self) -> bool:
        """Whether the task's rows have a label."""
        return bool(self.label_column)

    @property
    def main_metric(self) -> str:
        return self.metrics[0]

    def require_same(self, kind: str, labels: Sequence[str]) -> None:
        """Check that the server's task of this name has the same type and labels.

        Args:
            kind: the server's task type.
            labels: the server's labels, in the order of their numbers.

        Raises:
            ConfigError: they differ; the message has both.
        """
        if kind != self.kind:
            raise ConfigError(
                f"task {self.name}: the server has the task type {_named(kind)}; this client has {_named(self.kind)}. "
                f"Set tasks.{self.name}.type to the same type on both sides"
            )
        if tuple(labels) != self.labels:
            theirs, mine = _describe_difference(tuple(labels), self.labels)
            raise ConfigError(
                f"task {self.name}: the server has {theirs}; this client has {mine}. Labels and their order must be "
                f"the same, since a label is the number of an output: give tasks.{self.name}.labels the same list on "
                f"both sides"
            )


def _named(kind: str) -> str:
    return kind if kind in METRICS_OF else repr(kind)


def _describe_difference(theirs: Sequence[str], mine: Sequence[str]) -> tuple[str, str]:
    """Describe two lists of labels, short enough to read."""
    if max(len(theirs), len(mine)) <= MAX_SHOWN:
        return f"the labels {', '.join(theirs) or '(none)'}", ", ".join(mine) or "none"
    differ = next((i for i, (one, other) in enumerate(zip(theirs, mine, strict=False)) if one != other), None)
    if differ is None:
        return f"{len(theirs)} labels", str(len(mine))
    return (
        f"{len(theirs)} labels, and number {differ} is {theirs[differ]!r}",
        f"{len(mine)}, and number {differ} is {mine[differ]!r}",
    )
