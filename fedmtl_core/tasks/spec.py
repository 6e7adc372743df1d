"""Tasks: what kind of problem, over which columns, measured how. The GLUE tasks are presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedmtl_core.errors import ConfigError, InvalidRequestError
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.tasks.evaluation import BUILT_IN_BOUNDS, LOSS_BOUNDS, MAX_METRIC, Bounds
from fedmtl_core.tasks.labels import MAX_SHOWN, Values

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman", "masked_accuracy")
"""The metrics a task may name: GLUE's own (Wang et al. 2019, arXiv:1804.07461), and the share of masked tokens that
are found."""

METRICS_OF: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman"),
    "masked_lm": ("masked_accuracy",),
}
"""By built-in type, the metrics that fit it."""


@dataclass(frozen=True)
class TaskSpec:
    """One task, as server and clients both understand it."""

    name: str
    type: str
    """`classification`, `regression`, `masked_lm`, or `module:Name` for the user's own
    `fedmtl_core.tasks.kinds.TaskKind`."""
    text_columns: tuple[str, ...]
    """One column of text, or two that are read as a pair."""
    label_column: str
    """Empty where the kind's rows have no label."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers. Empty where the kind has none."""
    metrics: tuple[str, ...] = ()
    """The first is the task's main metric: what tables, plots and early decisions look at. Higher is better."""
    hub: tuple[str, str] | None = None
    """Where the data set hub has it: repository and configuration."""
    hub_splits: tuple[str, str] = ("train", "validation")
    """Names of the training and evaluation splits there."""
    value_range: tuple[float, float] | None = None
    """Of a regression, the lowest and the highest value: its head begins in the middle. None if nobody knows."""
    kind: str = field(init=False)
    """The type by the name that both sides have for it; that of a plug-in is what its class says."""
    metric_bounds: Mapping[str, Bounds] = field(init=False, compare=False, repr=False)
    """The lowest and the highest value of a metric, by name, as far as they are known."""

    def __post_init__(self) -> None:
        traits = traits_of(self.name, self.type)
        kind, metrics, has_labels = traits.kind, traits.metrics, traits.has_labels
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "metric_bounds", traits.metric_bounds)
        if bool(self.label_column) != traits.is_labelled:
            expected = "needs" if traits.is_labelled else "has no"
            raise ConfigError(f"tasks.{self.name}: a {kind} {expected} `label_column`, got {self.label_column!r}")
        if has_labels and len(self.labels) < 2:
            raise ConfigError(f"tasks.{self.name}: a {kind} needs at least 2 labels, got {len(self.labels)}")
        if not has_labels and self.labels:
            raise ConfigError(f"tasks.{self.name}: a {kind} has no labels, got {list(self.labels)}")
        if same := Values(self.labels).first_repeated():
            raise ConfigError(
                f"tasks.{self.name}: labels must differ, also as numbers and without the white space around them, "
                f"got {same[0]!r} and {same[1]!r}"
            )
        if len(self.text_columns) not in (1, 2):
            raise ConfigError(f"tasks.{self.name}: expected 1 or 2 text columns, got {list(self.text_columns)}")
        if self.value_range is not None:
            if has_labels or not traits.is_labelled:
                raise ConfigError(f"tasks.{self.name}.value_range: a {kind} has no values")
            if not self.value_range[0] < self.value_range[1]:
                raise ConfigError(
                    f"tasks.{self.name}.value_range: expected the lowest and the highest value, got "
                    f"{list(self.value_range)}"
                )
        if not self.metrics:
            object.__setattr__(self, "metrics", metrics[:1])
        for metric in self.metrics:
            if metric not in metrics:
                raise ConfigError(
                    f"tasks.{self.name}: metric {metric!r} doesn't fit a {kind}; expected {', '.join(metrics)}"
                )
            if self.type == "classification" and metric == "f1" and len(self.labels) != 2:
                raise ConfigError(f"tasks.{self.name}: f1 is for 2 labels, got {len(self.labels)}")

    @property
    def num_outputs(self) -> int:
        """Width of a linear head: a classification's classes, or 1 for a regression."""
        return len(self.labels) or 1

    @property
    def is_labelled(self) -> bool:
        """Whether its rows have a label."""
        return bool(self.label_column)

    @property
    def main_metric(self) -> str:
        return self.metrics[0]

    def require_same(self, kind: str, labels: Sequence[str]) -> None:
        """Check that a server's task of this name is this one: a label means what it means there.

        Args:
            kind: the server's.
            labels: the server's, in the order of their numbers.

        Raises:
            ConfigError: it is another; the message has both.
        """
        if kind != self.kind:
            raise ConfigError(f"task {self.name}: the server has {_named(kind)}; this client has {_named(self.kind)}")
        if tuple(labels) != self.labels:
            theirs, mine = _told_apart(tuple(labels), self.labels)
            raise ConfigError(
                f"task {self.name}: the server has {theirs}; this client has {mine}. They have to be the same in the "
                f"same order, since a label is the number of an output: see tasks.{self.name}.labels on both sides"
            )


@dataclass(frozen=True)
class Traits:
    """What a type of task is, short of what it computes."""

    kind: str
    """Its name for both sides."""
    metrics: tuple[str, ...]
    """Those that fit it."""
    has_labels: bool
    """Whether it has classes."""
    is_labelled: bool
    """Whether its rows have a label."""
    metric_bounds: Mapping[str, Bounds]
    """The lowest and the highest value of a metric, by name, as far as they are known."""


def traits_of(task: str, type_: str) -> Traits:
    """What a task's type is.

    Raises:
        ConfigError: it is a plug-in that can't be had, or contradicts itself.
    """
    if type_ in METRICS_OF:
        return Traits(type_, METRICS_OF[type_], type_ == "classification", type_ != "masked_lm", BUILT_IN_BOUNDS)
    from fedmtl_core import plugins  # it needs PyTorch, which what is built in doesn't
    from fedmtl_core.tasks import kinds  # it needs PyTorch, which what is built in doesn't

    key = f"tasks.{task}.type"
    plugin = plugins.load(key, type_, kinds.TaskKind)  # type: ignore[type-abstract]
    name = plugin.name or plugin.__name__
    try:
        require_identifier("name", name)
    except InvalidRequestError as error:
        raise ConfigError(f"{key}: {type_}: {error}") from None
    if name in METRICS_OF:
        raise ConfigError(f"{key}: {type_} needs a name of its own, got {name!r}, which is built in")
    metrics = getattr(plugin, "metrics", None)
    if not isinstance(metrics, tuple) or not metrics or not all(isinstance(metric, str) for metric in metrics):
        raise ConfigError(f"{key}: {type_}: expected `metrics` to be a tuple of names, got {metrics!r}")
    if plugin.sees not in ("text", "tokens"):
        raise ConfigError(f"{key}: {type_}: expected `sees` to be 'text' or 'tokens', got {plugin.sees!r}")
    return Traits(name, metrics, plugin.has_labels, plugin.is_labelled, _bounds_of(key, type_, plugin.metric_bounds))


def _bounds_of(key: str, type_: str, bounds: object) -> Mapping[str, Bounds]:
    """A plug-in's bounds of its metrics, and those of losses.

    Raises:
        ConfigError: they aren't pairs of numbers by name.
    """
    try:
        pairs = {str(name): (float(low), float(high)) for name, (low, high) in dict(bounds).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError):
        pairs = {"": (0.0, 0.0)}
    if not all(-MAX_METRIC <= low < high <= MAX_METRIC for low, high in pairs.values()):
        raise ConfigError(
            f"{key}: {type_}: expected `metric_bounds` to have the lowest and the highest value of metrics by name, "
            f"got {bounds!r}"
        )
    return {**LOSS_BOUNDS, **pairs}


def _named(kind: str) -> str:
    return f"a {kind}" if kind in METRICS_OF else f"the kind {kind!r}"


def _told_apart(theirs: Sequence[str], mine: Sequence[str]) -> tuple[str, str]:
    """Two lists of labels in words, short enough to be read."""
    if max(len(theirs), len(mine)) <= MAX_SHOWN:
        return f"the labels {', '.join(theirs) or '(none)'}", ", ".join(mine) or "none"
    differ = next((i for i, (one, other) in enumerate(zip(theirs, mine, strict=False)) if one != other), None)
    if differ is None:
        return f"{len(theirs)} labels", str(len(mine))
    return (
        f"{len(theirs)} labels, number {differ} is {theirs[differ]!r}",
        f"{len(mine)}, and there it is {mine[differ]!r}",
    )


def _glue(
    name: str,
    text_columns: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    validation: str,
    value_range: tuple[float, float] | None = None,
) -> TaskSpec:
    return TaskSpec(
        name=name,
        type="classification" if labels else "regression",
        text_columns=text_columns,
        label_column="label",
        labels=labels,
        metrics=metrics,
        hub=("nyu-mll/glue", name),
        hub_splits=("train", validation),
        value_range=value_range,
    )


_PAIR = ("sentence1", "sentence2")

PRESETS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _glue("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), "validation"),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), "validation"),
        _glue("stsb", _PAIR, (), ("pearson", "spearman"), "validation", (0.0, 5.0)),
        _glue("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), "validation"),
        _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy"), "validation"),
        _glue("rte", _PAIR, ("entailment", "not_entailment"), ("accuracy",), "validation"),
        _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",), "validation"),
        _glue(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            "validation_matched",
        ),
    )
}
"""The GLUE tasks by name."""
