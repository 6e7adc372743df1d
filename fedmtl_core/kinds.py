"""Kinds of tasks: what a task's head is, what it minimises, and how well it does.

Classification and regression are built in; a subclass of `TaskKind` is a kind of one's own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fedmtl_core import metrics, plugins
from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks import METRICS_OF, TaskSpec

Array = npt.NDArray[np.float64]


class TaskKind(ABC):
    """One kind of task. Server and clients need it alike: the head's parameters are what is averaged.

    Args:
        spec: the task.
    """

    name: ClassVar[str] = ""
    """By which server and clients tell that they mean the same kind; the class's name if not given. 1 to 64 letters,
    digits, `.`, `_` or `-`."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of what `measure` gives; a task takes the first unless it names others. More is better."""
    has_labels: ClassVar[bool] = True
    """Whether a task of this kind has classes: its targets are their numbers then, and any numbers otherwise."""

    def __init__(self, spec: TaskSpec):
        self.spec = spec

    @abstractmethod
    def head(self, hidden_size: int, dropout: float) -> nn.Module:
        """A new head: takes what the encoder gives, `(batch, hidden_size)`, and gives outputs, `(batch, anything)`.

        What is random in it comes from PyTorch's global generator, which has the head's seed.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """What training minimises.

        Args:
            outputs: the head's, `(batch, anything)`.
            targets: `(batch,)`, int64 class numbers, or float32 where there are no labels.
            reduction: `mean` for their mean, a scalar; `none` for each row's, `(batch,)`.
        """

    @abstractmethod
    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        """The metrics over a whole evaluation set.

        Args:
            outputs: the head's, `(examples, anything)`.
            targets: `(examples,)`.

        Returns:
            By name, at least those that the task names; finite.
        """


class TaskHead(nn.Linear):
    """Dropout, then a linear layer: `(batch, hidden)` to `(batch, num_outputs)`."""

    def __init__(self, hidden_size: int, num_outputs: int, dropout: float):
        super().__init__(hidden_size, num_outputs)
        self.dropout = dropout

    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(pooled, self.dropout, self.training))


class _Linear(TaskKind):
    """What has a linear head."""

    def head(self, hidden_size: int, dropout: float) -> nn.Module:
        head = TaskHead(hidden_size, self.spec.num_outputs, dropout)
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head


class Classification(_Linear):
    """Each row is of one class: an output for each, and cross-entropy."""

    name = "classification"
    metrics = METRICS_OF["classification"]

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        return metrics.scores(self.spec.metrics, targets, outputs.argmax(axis=1))


class Regression(_Linear):
    """Each row has a number: one output, and the squared error."""

    name = "regression"
    metrics = METRICS_OF["regression"]
    has_labels = False

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return nn.functional.mse_loss(outputs[:, 0], targets, reduction=reduction)

    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        return metrics.scores(self.spec.metrics, targets, outputs[:, 0])


_BUILT_IN: Mapping[str, type[TaskKind]] = {kind.name: kind for kind in (Classification, Regression)}


def kind_of(spec: TaskSpec) -> TaskKind:
    """A task's kind.

    Raises:
        ConfigError: it is a plug-in that can't be had.
    """
    key = f"tasks.{spec.name}.type"
    kind = _BUILT_IN.get(spec.type) or plugins.load(key, spec.type, TaskKind)  # type: ignore[type-abstract]
    with plugins.blamed(key, spec.type):
        return kind(spec)


def new_head(spec: TaskSpec, hidden_size: int, dropout: float) -> nn.Module:
    """A task's new head.

    Raises:
        ConfigError: its kind gives none.
    """
    key = f"tasks.{spec.name}.type"
    with plugins.blamed(key, spec.type):
        head: object = kind_of(spec).head(hidden_size, dropout)
    if not isinstance(head, nn.Module) or not any(True for _ in head.parameters()):
        raise ConfigError(f"{key}: {spec.type}: head() gives no torch.nn.Module with parameters, but {head!r}")
    return head


def measure(spec: TaskSpec, outputs: Array, targets: Array) -> dict[str, float]:
    """A task's metrics.

    Args:
        spec: the task; its `metrics` are measured.
        outputs: the head's outputs, `(examples, …)`: logits, or the predicted value.
        targets: class numbers or values, `(examples,)`.

    Returns:
        Value by metric name.

    Raises:
        ConfigError: the task's kind is a plug-in and doesn't give a finite number for each.
    """
    values = kind_of(spec).measure(outputs, targets)
    for name in spec.metrics:
        if name not in values or not math.isfinite(values[name]):
            got = values.get(name, "nothing")
            raise ConfigError(f"tasks.{spec.name}.type: {spec.type}: measure() gives {got} for {name!r}, not a number")
    return {name: float(values[name]) for name in spec.metrics}
