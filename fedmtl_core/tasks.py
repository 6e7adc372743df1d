"""Tasks: what kind of problem, over which columns, measured how. The GLUE tasks are presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedmtl_core.errors import ConfigError

TaskType = Literal["classification", "regression"]

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")
"""The metrics a task may name (GLUE's own; Wang et al. 2019, arXiv:1804.07461)."""

MAX_SHOWN = 20
"""Longer lists of labels aren't told whole in messages."""

_METRICS_OF: dict[TaskType, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman"),
}


@dataclass(frozen=True)
class TaskSpec:
    """One task, as server and clients both understand it."""

    name: str
    type: TaskType
    text_columns: tuple[str, ...]
    """One column of text, or two that are read as a pair."""
    label_column: str
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers. Empty for regression."""
    metrics: tuple[str, ...] = ()
    """The first is the task's main metric: what tables, plots and early decisions look at. Higher is better."""
    hub: tuple[str, str] | None = None
    """Where the data set hub has it: repository and configuration."""
    hub_splits: tuple[str, str] = ("train", "validation")
    """Names of the training and evaluation splits there."""

    def __post_init__(self) -> None:
        if self.type == "classification" and len(self.labels) < 2:
            raise ConfigError(f"tasks.{self.name}: a classification needs at least 2 labels, got {len(self.labels)}")
        if self.type == "regression" and self.labels:
            raise ConfigError(f"tasks.{self.name}: a regression has no labels, got {list(self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"tasks.{self.name}: labels must differ, got {', '.join(self.labels)}")
        if len(self.text_columns) not in (1, 2):
            raise ConfigError(f"tasks.{self.name}: expected 1 or 2 text columns, got {list(self.text_columns)}")
        if not self.metrics:
            object.__setattr__(self, "metrics", (_METRICS_OF[self.type][0],))
        for metric in self.metrics:
            if metric not in _METRICS_OF[self.type]:
                raise ConfigError(
                    f"tasks.{self.name}: metric {metric!r} doesn't fit a {self.type}; "
                    f"expected {', '.join(_METRICS_OF[self.type])}"
                )
            if metric == "f1" and len(self.labels) != 2:
                raise ConfigError(f"tasks.{self.name}: f1 is for 2 labels, got {len(self.labels)}")

    @property
    def num_outputs(self) -> int:
        """Width of the task's head: its classes, or 1 for a regression."""
        return len(self.labels) or 1

    @property
    def main_metric(self) -> str:
        return self.metrics[0]

    def require_same(self, type_: TaskType, labels: Sequence[str]) -> None:
        """Check that a server's task of this name is this one: a label means what it means there.

        Args:
            type_: the server's.
            labels: the server's, in the order of their numbers.

        Raises:
            ConfigError: it is another; the message has both.
        """
        if type_ != self.type:
            raise ConfigError(f"task {self.name}: the server has a {type_}; this client has a {self.type}")
        if tuple(labels) != self.labels:
            theirs, mine = _told_apart(tuple(labels), self.labels)
            raise ConfigError(
                f"task {self.name}: the server has {theirs}; this client has {mine}. They have to be the same in the "
                f"same order, since a label is the number of an output: see tasks.{self.name}.labels on both sides"
            )


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
    name: str, text_columns: tuple[str, ...], labels: tuple[str, ...], metrics: tuple[str, ...], validation: str
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
    )


_PAIR = ("sentence1", "sentence2")

PRESETS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _glue("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), "validation"),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), "validation"),
        _glue("stsb", _PAIR, (), ("pearson", "spearman"), "validation"),
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
