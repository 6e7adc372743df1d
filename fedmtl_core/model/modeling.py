"""The multi-task model: a shared encoder and one head per task (MT-DNN; Liu et al. 2019, arXiv:1901.11504)."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fedmtl_core.errors import ConfigError, UnknownTaskError
from fedmtl_core.model import adapters as adapting
from fedmtl_core.model.encoders import TOY_MODEL, load_encoder, load_tokenizer, locate
from fedmtl_core.model.layers import norms_of, parts_of
from fedmtl_core.model.pooling import encode_texts, encode_tokens
from fedmtl_core.model.scopes import FROZEN, MERGED
from fedmtl_core.model.sharing import ModelShape
from fedmtl_core.randomness import drawing_from
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.tasks.kinds import EncoderInfo, TaskKind, new_head, word_embeddings
from fedmtl_core.tasks.plan import Pooling
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import HeadInit, TaskSpec

__all__ = ["TOY_MODEL", "MultiTaskModel", "load_encoder", "load_tokenizer", "locate"]


@dataclass(frozen=True)
class HeadSettings:
    """What a model's new heads have in common."""

    dropout: float = 0.1
    """The dropout probability before each head."""
    seed: int = 42
    """The seed of the initial values."""
    init: HeadInit = "task"
    """With `task`, a head's initial values depend on the seed and the task's name only; with `form`, on the seed and
    the name of the model's first task of the same form (`TaskSpec.form`)."""


DEFAULT_HEADS = HeadSettings()


class MultiTaskModel(nn.Module):
    """An encoder and task heads: the heads of all tasks on the server, one head on a client.

    Args:
        encoder: takes `input_ids` and the rest of a tokenizer's output; returns a Hugging Face model output.
        hidden_size: width of the encoder's output.
        pooling: the vector of a text that its head sees: `cls` for the encoder's pooled first token, `mean` for the
            mean of all tokens, `last` for the last token.
        heads: the dropout before each head, and the source of its initial values.
        adapters: the adapters to add to the encoder, whose own parameters are then frozen; None for none.

    Raises:
        ConfigError: a task's name is taken, or the adapters don't fit the encoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Iterable[TaskSpec],
        *,
        hidden_size: int,
        pooling: Pooling = "cls",
        heads: HeadSettings = DEFAULT_HEADS,
        adapters: AdapterSettings | None = None,
    ):
        super().__init__()
        if adapters is not None:
            adapting.inject(encoder, adapters)
        self.adapters = adapters
        """The encoder's adapters; None if its own parameters are trained."""
        self.encoder = encoder
        self.heads = nn.ModuleDict()
        self._encoder_info = EncoderInfo.of(encoder, hidden_size)
        self._kinds: dict[str, TaskKind] = {}
        self._pooling: Pooling = pooling
        self._settings = heads
        self._drawn: dict[tuple[str, int, int], str] = {}
        for spec in tasks:
            self.add_head(spec)
        if adapters is not None:
            self.freeze(())

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.heads)

    @property
    def hidden_size(self) -> int:
        """Width of the encoder's output."""
        return self._encoder_info.hidden_size

    @property
    def pooling(self) -> Pooling | None:
        """The pooling of texts for the heads; None if all heads see tokens."""
        return self._pooling if any(kind.sees == "text" for kind in self._kinds.values()) else None

    def add_head(self, spec: TaskSpec) -> None:
        """Add a task's head. Neither other parameters nor the global random state change.

        Raises:
            ConfigError: the name is taken, or the task type returns no head.
        """
        if hasattr(self.heads, spec.name):
            taken = (
                "a head of this name exists already" if spec.name in self.heads else "PyTorch's ModuleDict reserves it"
            )
            raise ConfigError(f"tasks: {spec.name!r} can't be a task's name, since {taken}; choose another name")
        kind = kind_of(spec)
        first = self._drawn.setdefault(spec.form, spec.name)
        name = first if self._settings.init == "form" else spec.name
        with drawing_from(self._settings.seed ^ zlib.crc32(name.encode())):
            head = new_head(kind, self._encoder_info, self._settings.dropout)
        self._kinds[spec.name], self.heads[spec.name] = kind, head

    def forward(self, task: str, inputs: Mapping[str, Tensor], tokens: Tensor | None = None) -> Tensor:
        """Return the outputs of one task's head: `(batch, …)`, or `(tokens, …)` for a head that sees tokens.

        Args:
            task: the task.
            inputs: the tokenizer's output, each tensor `(batch, tokens)`.
            tokens: for a head that sees tokens, bool `(batch, tokens)`: the tokens to return outputs for, in their
                order; None for all tokens except padding.

        Raises:
            UnknownTaskError: the model has no head for the task.
        """
        if task not in self.heads:
            raise UnknownTaskError(f"expected one of the tasks {', '.join(self.tasks)}, got {task!r}")
        kind = self._kinds[task]
        if kind.sees == "text":
            seen = encode_texts(self.encoder, inputs, self._pooling)
        else:
            seen = encode_tokens(self.encoder, inputs, tokens)
        more = (word_embeddings(self.encoder),) if kind.sees_embeddings else ()
        outputs: Tensor = self.heads[task](seen, *more)
        return outputs

    def exchanged(self) -> dict[str, Tensor]:
        """Return the tensors that may be exchanged, by name, the encoder's first: every parameter, and every persistent
        floating-point buffer. With adapters, the encoder's are those of its adapters."""
        return {name: tensor for name, tensor in self._tensors().items() if not self._is_of_base(name)}

    def base(self) -> dict[str, dict[str, Tensor]]:
        """Return the encoder's tensors that clients don't train, by scope and name; empty without adapters.

        Their names are those of the encoder without adapters. The scope `frozen` has those that never change, in the
        encoder's order; factors A that keep their first values follow them. If rounds add their adapters to the adapted
        weights, the scope `merged` has these weights, in the encoder's order.
        """
        if self.adapters is None:
            return {}
        base = {name: tensor for name, tensor in self._tensors().items() if self._is_of_base(name)}
        in_order = dict(sorted(base.items(), key=lambda item: adapting.factor_of(item[0]) is not None))
        if not self.adapters.is_stacked:
            return {FROZEN: in_order}
        merged = {f"encoder.{layer}.weight" for layer in adapting.adapted_layers(self.encoder)}
        return {
            FROZEN: {name: tensor for name, tensor in in_order.items() if name not in merged},
            MERGED: {name: tensor for name, tensor in in_order.items() if name in merged},
        }

    def freeze(self, names: Collection[str]) -> None:
        """Set which exchanged parameters are trained: all but those with the given names. The base never is."""
        for name, tensor in self._tensors().items():
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(not self._is_of_base(name) and name not in names)

    def merged(self) -> MultiTaskModel:
        """Return this model without adapters: an adapted layer's weight is the sum of its own and the adapter's.

        The heads, and all parameters that aren't adapted, are shared with this model. Without adapters, it is this
        model itself."""
        if self.adapters is None:
            return self
        plain = copy.deepcopy(self, {id(self.encoder): adapting.merged(self.encoder), id(self.heads): self.heads})
        plain.adapters = None
        return plain

    def _tensors(self) -> dict[str, Tensor]:
        """Return all parameters and persistent floating-point buffers by their names in components."""
        persistent = self.state_dict().keys()
        tensors: dict[str, Tensor] = dict(self.named_parameters())
        tensors |= {n: b for n, b in self.named_buffers() if n in persistent and b.is_floating_point()}
        if self.adapters is None:
            return tensors
        return {adapting.component_name(name): tensor for name, tensor in tensors.items()}

    def _is_of_base(self, name: str) -> bool:
        if self.adapters is None or not name.startswith("encoder."):
            return False
        factor = adapting.factor_of(name)
        return factor is None or (factor == "a" and self.adapters.a_is_frozen)

    def shape(self) -> ModelShape:
        """Return the exchanged tensors' names, grouped by their part of the model."""
        names = self.exchanged()
        part_of, norms = parts_of(self.encoder), norms_of(self.encoder)
        encoder = [name for name in names if name.startswith("encoder.")]
        return ModelShape(
            parts={name: part_of(name.removeprefix("encoder.")) for name in encoder},
            heads={task: [name for name in names if name.startswith(f"heads.{task}.")] for task in self.heads},
            norms=frozenset(name for name in encoder if name.removeprefix("encoder.").rpartition(".")[0] in norms),
            factors={name: factor for name in encoder if (factor := adapting.factor_of(name)) is not None}
            if self.adapters is not None
            else {},
        )
