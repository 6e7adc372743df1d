"""Kinds of tasks: what a task's head is, what it minimises, and how well it does.

Classification, regression and masked-language modelling (`fedmtl_core.tasks.masked_lm`) are built in; a subclass of
`TaskKind` is a kind of one's own.
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
from fedmtl_core.tasks import metrics
from fedmtl_core.tasks.evaluation import NO_MEANS, ROUNDING, Bounds, Evaluation, Sums, Undefined
from fedmtl_core.tasks.labels import LabelNames, is_number
from fedmtl_core.tasks.spec import METRICS_OF, TaskSpec

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Array = npt.NDArray[np.float64]

Row = Mapping[str, Any]
"""One row as token ids: what a tokenizer made of its text, by name, and its `TARGETS` where it has some."""
Collate = Callable[[Sequence[Row]], tuple[dict[str, Tensor], Tensor]]
"""Makes a batch of rows: what the encoder takes, each `(batch, tokens)`, and the targets."""

TARGETS = "targets"
"""The column of `TaskKind.encode` that isn't the encoder's."""
CUT = "cut"
"""An optional column of `TaskKind.encode`: whether `max_length` cut the row. No batch has it."""
IGNORED = -100
"""The target of a token that has none; PyTorch's and transformers' own."""


@dataclass(frozen=True)
class EncoderFacts:
    """What a head may have to know of the encoder that it sits on."""

    hidden_size: int
    """Width of its output."""
    vocabulary_size: int = 0
    """Rows of its word embeddings; 0 if it has none."""
    embedding_size: int = 0
    """Their width."""
    activation: str = "gelu"
    """By its name in transformers."""
    norm_eps: float = 1e-12
    """Of its layer norms."""

    @classmethod
    def of(cls, encoder: nn.Module, hidden_size: int) -> EncoderFacts:
        """An encoder's facts, as far as it has them."""
        words, config = word_embeddings(encoder), getattr(encoder, "config", None)
        rows, width = (0, 0) if words is None else words.shape
        activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None) or cls.activation
        return cls(hidden_size, rows, width, activation, getattr(config, "layer_norm_eps", cls.norm_eps))


def word_embeddings(encoder: nn.Module) -> Tensor | None:
    """An encoder's word embeddings, `(vocabulary, width)`: the parameter itself; None if it has none."""
    return getattr(input_embeddings(encoder), "weight", None)


def input_embeddings(encoder: nn.Module) -> nn.Module | None:
    """The module that looks words up; None if an encoder has none, such as CANINE, which hashes characters."""
    get = getattr(encoder, "get_input_embeddings", None)
    try:
        return get() if get is not None else None
    except NotImplementedError:
        return None


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
    metric_bounds: ClassVar[Mapping[str, Bounds]] = {}
    """The lowest and the highest value of a metric, by name: the server refuses others. Of a metric without bounds it
    takes any number up to 1e100."""
    has_labels: ClassVar[bool] = True
    """Whether a task of this kind has classes: its targets are their numbers then, and any numbers otherwise."""
    is_labelled: ClassVar[bool] = True
    """Whether its rows have a label, in the task's `label_column`; else its targets are made of the texts alone."""
    sees: ClassVar[Literal["text", "tokens"]] = "text"
    """What a head gets a vector for: each text, pooled as the plan says, which has one target; or each token that has a
    target of its own."""
    sees_embeddings: ClassVar[bool] = False
    """Whether the head gets the encoder's word embeddings, `(vocabulary, width)`, as a second argument."""

    def __init__(self, spec: TaskSpec):
        self.spec = spec

    @abstractmethod
    def head(self, encoder: EncoderFacts, dropout: float) -> nn.Module:
        """A new head: from a vector for each target, `(targets, hidden_size)`, to outputs, `(targets, anything)`.

        What is random in it comes from PyTorch's global generator, which has the head's seed.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """What training minimises.

        Args:
            outputs: the head's, `(targets, anything)`.
            targets: `(targets,)`, int64 class numbers, or float32 where there are no labels.
            reduction: `mean` for their mean, a scalar; `none` for each target's, `(targets,)`.
        """

    @abstractmethod
    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        """The metrics over a whole evaluation set.

        Args:
            outputs: what `kept` left of the head's, `(targets, anything)`.
            targets: `(targets,)`.

        Returns:
            By name, at least those that the task names: finite, or where a metric is undefined NaN or a
            `fedmtl_core.tasks.evaluation.Undefined`, which says why.
        """

    def sums(self, outputs: Array, targets: Array) -> Sums | None:
        """What the built-in metrics of several clients' rows together follow from; None if they don't.

        Args:
            outputs: what `kept` left of the head's, `(targets, anything)`.
            targets: `(targets,)`.
        """
        return None

    def kept(self, outputs: Tensor) -> Tensor:
        """What `measure` needs of a batch's outputs: all of them are kept until the last batch is evaluated."""
        return outputs

    def target(self, value: Any) -> Any:
        """What a cell of the label column says: a class's number (see `tasks.labels.LabelNames`), or a number.

        A kind that sees tokens may make more of it, such as a list, and `encode` gives each token its target.

        Raises:
            ValueError: it is neither; the message says what was expected.
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

    def require_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027  most kinds can do with any
        """Check that a `transformers` tokenizer is one that the kind can do with.

        Raises:
            ConfigError: it isn't.
        """

    def encode(
        self,
        texts: Sequence[tuple[str, ...]],
        targets: Sequence[Any],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> Mapping[str, Sequence[Any]]:
        """Rows as token ids, made once.

        Args:
            texts: at least one row's.
            targets: each row's, as `target` gave it; None each where rows have no label.
            tokenizer: a `transformers` fast tokenizer.
            max_length: longer inputs are cut, the longer text of a pair first.

        Returns:
            Columns: what the tokenizer gives, and `TARGETS`: a number a row, or where a head sees tokens a list of one
            for each, `IGNORED` where there is none. With `CUT` too (see `cut_rows`), clients report the rows cut.
        """
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        return {**encoded, **cut_rows(encoded), TARGETS: targets}

    def collator(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Collate:
        """What makes batches of encoded rows.

        The targets are `(batch,)`, or where a head sees tokens `(batch, tokens)` with `IGNORED` where there is none.

        Args:
            tokenizer: which made them.
            seed: of what is random in it. Every pass over the rows in training has something else of it; every
                evaluation has the same.
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
    """The column `CUT` for what a tokenizer gave with `truncation=True`.

    Args:
        encoded: a `transformers.BatchEncoding`.

    Returns:
        Nothing if it comes from a tokenizer in Python, which doesn't say.
    """
    return {CUT: [bool(row.overflowing) for row in encoded.encodings]} if encoded.encodings else {}


def _number(value: Any) -> float:
    """A cell as a number; NaN if it is none."""
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
    """What has a linear head."""

    def head(self, encoder: EncoderFacts, dropout: float) -> TaskHead:
        head = TaskHead(encoder.hidden_size, self.spec.num_outputs, dropout)
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
        if reason := metrics.not_finite(outputs):  # the argmax of NaN is class 0
            return dict.fromkeys(self.spec.metrics, Undefined(reason))
        return metrics.scores(self.spec.metrics, targets, outputs.argmax(axis=1), self.sums(outputs, targets))

    def sums(self, outputs: Array, targets: Array) -> Sums | None:
        if metrics.not_finite(outputs):
            return None
        return metrics.class_counts(targets, outputs.argmax(axis=1), len(self.spec.labels))


class Regression(_Linear):
    """Each row has a number: one output, and the squared error."""

    name = "regression"
    metrics = METRICS_OF["regression"]
    has_labels = False

    def head(self, encoder: EncoderFacts, dropout: float) -> TaskHead:
        head = super().head(encoder, dropout)
        if self.spec.value_range is not None:
            # From 0 a small learning rate takes a round or more to get to where the values are.
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


def new_head(kind: TaskKind, encoder: EncoderFacts, dropout: float) -> nn.Module:
    """A new head for a task of a kind.

    Raises:
        ConfigError: the kind gives none.
    """
    spec = kind.spec
    key = f"tasks.{spec.name}.type"
    with plugins.attribute_errors(key, spec.type):
        head: object = kind.head(encoder, dropout)
    if not isinstance(head, nn.Module) or not any(True for _ in head.parameters()):
        raise ConfigError(f"{key}: {spec.type}: head() gives no torch.nn.Module with parameters, but {head!r}")
    return head


def measure(kind: TaskKind, outputs: Array, targets: Array) -> Evaluation:
    """A task's metrics, and where a task's metric isn't its clients' mean, the sums that it follows from.

    Args:
        kind: the task's; the `metrics` of its `spec` are measured.
        outputs: what the kind's `kept` left of the head's, `(targets, …)`: logits, or the predicted value.
        targets: class numbers or values, `(targets,)`.

    Raises:
        ConfigError: the task's kind is a plug-in, and doesn't give each metric within its bounds.
    """
    spec = kind.spec
    values = kind.measure(outputs, targets)
    for name in spec.metrics:
        _require_possible(spec, name, values)
    # A plug-in's metrics may mean something else under the same names.
    needs_sums = spec.type in METRICS_OF and not NO_MEANS.isdisjoint(spec.metrics)
    sums = kind.sums(outputs, targets) if needs_sums else None
    return Evaluation.of({name: values[name] for name in spec.metrics}, len(targets), sums=sums)


def _require_possible(spec: TaskSpec, name: str, values: Mapping[str, float]) -> None:
    where = f"tasks.{spec.name}.type: {spec.type}: measure() gives"
    if name not in values or math.isinf(values[name]):
        raise ConfigError(f"{where} {values.get(name, 'nothing')} for {name!r}, not a number")
    low, high = spec.metric_bounds.get(name, (-math.inf, math.inf))
    if not (low - ROUNDING <= values[name] <= high + ROUNDING or math.isnan(values[name])):
        raise ConfigError(f"{where} {values[name]} for {name!r}, expected {low:g} to {high:g}")
