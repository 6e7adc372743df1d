"""Task types: each defines a task's head, loss and metrics.

Classification, regression and masked-language modeling (`fedmtl_core.tasks.masked_lm`) are built in; a subclass of
`TaskKind` is a custom task type.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedmtl_core import plugins
from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks import calibration, metrics
from fedmtl_core.tasks.evaluation import NO_MEANS, ROUNDING, Bounds, Evaluation, Sums, Undefined
from fedmtl_core.tasks.labels import LabelNames, is_number
from fedmtl_core.tasks.spec import METRICS_OF, TaskSpec

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Array = npt.NDArray[np.float64]

Row = Mapping[str, Any]
"""One row as token ids: a tokenizer's output for its text, by name, and its `TARGETS` if it has any."""
Collate = Callable[[Sequence[Row]], tuple[dict[str, Tensor], Tensor]]
"""Collates rows into a batch: the encoder's inputs, each `(batch, tokens)`, and the targets."""

TARGETS = "targets"
"""The column of `TaskKind.encode` with the targets; the other columns are the encoder's inputs."""
CUT = "cut"
"""An optional column of `TaskKind.encode`: whether `max_length` truncated the row. Batches don't have it."""
IGNORED = -100
"""The target of a token without a target; PyTorch and transformers use the same value."""


@dataclass(frozen=True)
class EncoderInfo:
    """Properties of an encoder that a head may need."""

    hidden_size: int
    """Width of the encoder's output."""
    vocabulary_size: int = 0
    """Number of word embeddings; 0 if the encoder has none."""
    embedding_size: int = 0
    """Width of the word embeddings."""
    activation: str = "gelu"
    """The activation function, by its name in transformers."""
    norm_eps: float = 1e-12
    """Epsilon of the layer norms."""

    @classmethod
    def of(cls, encoder: nn.Module, hidden_size: int) -> EncoderInfo:
        """Return an encoder's properties, with defaults for those that its configuration doesn't give."""
        words, config = word_embeddings(encoder), getattr(encoder, "config", None)
        rows, width = (0, 0) if words is None else words.shape
        activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None) or cls.activation
        return cls(hidden_size, rows, width, activation, getattr(config, "layer_norm_eps", cls.norm_eps))


def word_embeddings(encoder: nn.Module) -> Tensor | None:
    """Return an encoder's word embeddings, `(vocabulary, width)`: the parameter itself; None if it has none."""
    return getattr(input_embeddings(encoder), "weight", None)


def input_embeddings(encoder: nn.Module) -> nn.Module | None:
    """Return the module that looks words up; None if an encoder has none, such as CANINE, which hashes characters."""
    get = getattr(encoder, "get_input_embeddings", None)
    try:
        return get() if get is not None else None
    except NotImplementedError:
        return None


class TaskKind(ABC):
    """A task type. Server and clients need the same one, since the head's parameters are averaged.

    Args:
        spec: the task.
    """

    name: ClassVar[str] = ""
    """Identifies the task type: server and clients compare it. 1 to 64 letters, digits, `.`, `_` or `-`; by default the
    class's name."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of the metrics that `measure` returns; a task that names none has the first. Higher is better."""
    metric_bounds: ClassVar[Mapping[str, Bounds]] = {}
    """The lowest and the highest value of a metric, by name: the server refuses other values. For a metric without
    bounds it accepts any number up to 1e100."""
    has_labels: ClassVar[bool] = True
    """Whether tasks of this type have classes. Then targets are class numbers, otherwise arbitrary numbers."""
    is_labelled: ClassVar[bool] = True
    """Whether rows have a label, in the task's `label_column`; otherwise targets are made from the texts alone."""
    sees: ClassVar[Literal["text", "tokens"]] = "text"
    """The head's input. `text`: one vector per text, pooled as the plan says, with one target. `tokens`: one vector per
    token that has a target."""
    sees_embeddings: ClassVar[bool] = False
    """Whether the head receives the encoder's word embeddings, `(vocabulary, width)`, as a second argument."""

    def __init__(self, spec: TaskSpec):
        self.spec = spec

    @abstractmethod
    def head(self, encoder: EncoderInfo, dropout: float) -> nn.Module:
        """Return a new head: a module from a vector per target, `(targets, hidden_size)`, to `(targets, anything)`.

        Random initial values must come from PyTorch's global generator, which is seeded for the head.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Return the training objective.

        Args:
            outputs: the head's outputs, `(targets, anything)`.
            targets: `(targets,)`, int64 class numbers, or float32 for a type without classes.
            reduction: `mean` for the mean loss, a scalar; `none` for the loss of each target, `(targets,)`.
        """

    @abstractmethod
    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        """Return the metrics over a whole evaluation set.

        Args:
            outputs: the head's outputs after `reduce_outputs`, `(targets, anything)`.
            targets: `(targets,)`.

        Returns:
            By name, at least the metrics that the task names. Values are finite; an undefined metric is NaN, or a
            `fedmtl_core.tasks.evaluation.Undefined` with the reason.
        """

    def sums(self, outputs: Array, targets: Array) -> Sums | None:
        """Return sums from which the built-in metrics of several clients' rows together follow; None if they don't.

        Args:
            outputs: the head's outputs after `reduce_outputs`, `(targets, anything)`.
            targets: `(targets,)`.
        """
        return None

    def calibrated_losses(self, outputs: Array, targets: Array, losses: Array) -> Array:
        """Return the loss of each target after a recalibration of the outputs; by default `losses` unchanged.

        Two models are compared by these losses. They should not change with the outputs' scale, or with anything else
        that a recalibration on the same targets would fix.

        Args:
            outputs: the head's outputs after `reduce_outputs`, `(targets, anything)`.
            targets: `(targets,)`.
            losses: what `loss` returned for each target, `(targets,)`.

        Returns:
            Finite values, `(targets,)`. Lower is better.
        """
        return losses

    def reduce_outputs(self, outputs: Tensor) -> Tensor:
        """Reduce a batch's outputs to what `measure` needs: results of all batches stay in memory until the last."""
        return outputs

    def target(self, value: Any) -> Any:
        """Convert a cell of the label column to a target: a class number (see `tasks.labels.LabelNames`), or a number.

        A type that sees tokens may return another object, such as a list, from which `encode` makes targets of tokens.

        Raises:
            ValueError: the cell is neither; the message says what was expected.
        """
        if not self.has_labels:
            number = _number(value)
            if not math.isfinite(number):
                raise ValueError(f"expected a finite number, got {value!r}")
            return number
        return self._label_names.number_of(value)

    @cached_property
    def _label_names(self) -> LabelNames:
        return LabelNames(self.spec.labels)

    def require_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027  most types accept any
        """Check that the task type can use a `transformers` tokenizer.

        Raises:
            ConfigError: it can't.
        """

    def encode(
        self,
        texts: Sequence[tuple[str, ...]],
        targets: Sequence[Any],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> Mapping[str, Sequence[Any]]:
        """Tokenize rows, once before training.

        Args:
            texts: the texts of at least one row.
            targets: each row's target, as `target` returned it; None for each row without a label.
            tokenizer: a `transformers` fast tokenizer.
            max_length: longer inputs are truncated, the longer text of a pair first.

        Returns:
            Columns: the tokenizer's output, and `TARGETS`: a number per row, or for a head that sees tokens a list of
            one per token, with `IGNORED` for tokens without a target. With `CUT` too (see `cut_rows`), clients report
            the number of truncated rows.
        """
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        return {**encoded, **cut_rows(encoded), TARGETS: targets}

    def collator(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Collate:
        """Return the function that collates encoded rows into batches.

        Targets are `(batch,)`, or for a head that sees tokens `(batch, tokens)`, with `IGNORED` for tokens without a
        target.

        Args:
            tokenizer: the tokenizer of the rows.
            seed: seeds random choices in batches. Every training pass over the rows makes new choices; every evaluation
                makes the same ones.
        """
        dtype = torch.int64 if self.has_labels else torch.float32

        def collate(rows: Sequence[Row]) -> tuple[dict[str, Tensor], Tensor]:
            features = [{name: value for name, value in row.items() if name != TARGETS} for row in rows]
            inputs = dict(tokenizer.pad(features, return_tensors="pt"))
            if self.sees == "text":
                return inputs, torch.tensor([row[TARGETS] for row in rows], dtype=dtype)
            targets = torch.full(inputs["attention_mask"].shape, IGNORED, dtype=dtype)
            for mine, present, row in zip(targets, inputs["attention_mask"].bool(), rows, strict=True):
                mine[present] = torch.tensor(row[TARGETS], dtype=dtype)
            return inputs, targets

        return collate


def cut_rows(encoded: BatchEncoding) -> dict[str, list[bool]]:
    """Return the column `CUT` for a tokenizer's output with `truncation=True`.

    Args:
        encoded: a `transformers.BatchEncoding`.

    Returns:
        The column by its name; empty for the output of a Python tokenizer, which doesn't report truncation.
    """
    return {CUT: [bool(row.overflowing) for row in encoded.encodings]} if encoded.encodings else {}


def _number(value: Any) -> float:
    """Convert a cell to a number; NaN if it is none."""
    if isinstance(value, str) and not is_number(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


class TaskHead(nn.Linear):
    """Dropout, then a linear layer: `(batch, hidden)` to `(batch, num_outputs)`."""

    def __init__(self, hidden_size: int, num_outputs: int, dropout: float):
        super().__init__(hidden_size, num_outputs)
        self.dropout = dropout

    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(pooled, self.dropout, self.training))


class _Linear(TaskKind):
    """Base of task types with a linear head."""

    def head(self, encoder: EncoderInfo, dropout: float) -> TaskHead:
        head = TaskHead(encoder.hidden_size, self.spec.num_outputs, dropout)
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def _has_loss_of(self, base: type[TaskKind]) -> bool:
        """Whether this type's loss is that of a base class, and the outputs of an evaluation are those of the head."""
        return type(self).loss is base.loss and type(self).reduce_outputs is TaskKind.reduce_outputs


class Classification(_Linear):
    """Each row belongs to one class: one output per class, and cross-entropy.

    A subclass with a loss of its own is compared by this loss, unless it overrides `calibrated_losses`.
    """

    name = "classification"
    metrics = METRICS_OF["classification"]

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        if reason := metrics.not_finite(outputs):  # the argmax of NaN is class 0
            return dict.fromkeys(self.spec.metrics, Undefined(reason))
        return metrics.scores(self.spec.metrics, targets, outputs.argmax(axis=1), self.sums(outputs, targets))

    def sums(self, outputs: Array, targets: Array) -> Sums | None:
        if metrics.not_finite(outputs):
            return None
        return metrics.class_counts(targets, outputs.argmax(axis=1), len(self.spec.labels))

    def calibrated_losses(self, outputs: Array, targets: Array, losses: Array) -> Array:
        if not self._has_loss_of(Classification):
            return losses
        return calibration.classification_losses(outputs, targets)


class Regression(_Linear):
    """Each row has a number: one output, and the squared error.

    A subclass with a loss of its own is compared by this loss, unless it overrides `calibrated_losses`.
    """

    name = "regression"
    metrics = METRICS_OF["regression"]
    has_labels = False

    def head(self, encoder: EncoderInfo, dropout: float) -> TaskHead:
        head = super().head(encoder, dropout)
        if self.spec.value_range is not None:
            # From 0, a small learning rate would need a round or more to reach the range of the values.
            nn.init.constant_(head.bias, sum(self.spec.value_range) / 2)
        return head

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return nn.functional.mse_loss(outputs[:, 0], targets, reduction=reduction)

    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        if reason := metrics.not_finite(outputs):
            return dict.fromkeys(self.spec.metrics, Undefined(reason))
        return metrics.scores(self.spec.metrics, targets, outputs[:, 0], self.sums(outputs, targets))

    def sums(self, outputs: Array, targets: Array) -> Sums | None:
        if metrics.not_finite(outputs):
            return None
        sums = metrics.moments(targets, outputs[:, 0])
        return sums if metrics.is_bounded(sums) else None

    def calibrated_losses(self, outputs: Array, targets: Array, losses: Array) -> Array:
        if not self._has_loss_of(Regression):
            return losses
        calibrated = calibration.regression_losses(outputs[:, 0], targets)
        return losses if calibrated is None else calibrated


def new_head(kind: TaskKind, encoder: EncoderInfo, dropout: float) -> nn.Module:
    """Return a new head for a task of a type.

    Raises:
        ConfigError: the type returns no head.
    """
    spec = kind.spec
    key = f"tasks.{spec.name}.type"
    with plugins.attribute_errors(key, spec.type):
        head: object = kind.head(encoder, dropout)
    if not isinstance(head, nn.Module) or not any(True for _ in head.parameters()):
        raise ConfigError(f"{key}: {spec.type}: head() must return a torch.nn.Module with parameters, got {head!r}")
    return head


def measure(kind: TaskKind, outputs: Array, targets: Array) -> Evaluation:
    """Return a task's metrics, and if one of them isn't the mean of clients' values, the sums that it follows from.

    Args:
        kind: the task's type; the `metrics` of its `spec` are measured.
        outputs: the head's outputs after `reduce_outputs`, `(targets, …)`: logits, or the predicted value.
        targets: class numbers or values, `(targets,)`.

    Raises:
        ConfigError: the type is a plug-in that doesn't return each metric within its bounds.
    """
    spec = kind.spec
    values = kind.measure(outputs, targets)
    for name in spec.metrics:
        _require_possible(spec, name, values)
    # A plug-in's metrics may have another meaning under the same names.
    needs_sums = spec.type in METRICS_OF and not NO_MEANS.isdisjoint(spec.metrics)
    sums = kind.sums(outputs, targets) if needs_sums else None
    return Evaluation.of({name: values[name] for name in spec.metrics}, len(targets), sums=sums)


def calibrated_losses(kind: TaskKind, outputs: Array, targets: Array, losses: Array) -> Array:
    """Return the calibrated loss of each target, float64 `(targets,)`; see `TaskKind.calibrated_losses`.

    Raises:
        ConfigError: the type is a plug-in that doesn't return a finite number for each target.
    """
    values: Array = np.asarray(kind.calibrated_losses(outputs, targets, losses), dtype=np.float64)
    if values.shape != losses.shape or not np.isfinite(values).all():
        raise ConfigError(
            f"tasks.{kind.spec.name}.type: {kind.spec.type}: calibrated_losses() must return a finite number for each "
            f"of the {len(losses)} targets, got {np.isfinite(values).sum()} finite ones in an array {values.shape}"
        )
    return values


def _require_possible(spec: TaskSpec, name: str, values: Mapping[str, float]) -> None:
    where = f"tasks.{spec.name}.type: {spec.type}: measure() must return"
    if name not in values or math.isinf(values[name]):
        raise ConfigError(f"{where} a finite number or NaN for {name!r}, got {values.get(name, 'nothing')}")
    low, high = spec.metric_bounds.get(name, (-math.inf, math.inf))
    if not (low - ROUNDING <= values[name] <= high + ROUNDING or math.isnan(values[name])):
        raise ConfigError(f"{where} a number from {low:g} to {high:g} for {name!r}, got {values[name]}")
