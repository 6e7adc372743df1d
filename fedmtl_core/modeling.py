"""The multi-task model: a shared encoder and one head per task (MT-DNN; Liu et al. 2019, arXiv:1901.11504)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fedmtl_core.encoders import TOY_MODEL, load_encoder, load_tokenizer, locate
from fedmtl_core.errors import ConfigError, UnknownTaskError
from fedmtl_core.kinds import EncoderFacts, TaskKind, kind_of, new_head, word_embeddings
from fedmtl_core.layers import norms_of, parts_of
from fedmtl_core.plan import Pooling
from fedmtl_core.randomness import drawing_from
from fedmtl_core.sharing import ModelShape
from fedmtl_core.tasks import TaskSpec

__all__ = ["TOY_MODEL", "MultiTaskModel", "load_encoder", "load_tokenizer", "locate", "require_length"]


class MultiTaskModel(nn.Module):
    """An encoder and the heads of some tasks: all of them on the server, one on a client.

    Args:
        encoder: takes `input_ids` and the rest of a tokenizer's output; returns a Hugging Face model output.
        hidden_size: width of the encoder's output.
        pooling: what a head sees of a text: `cls`, the encoder's pooled first token; or `mean`, that of all tokens.
        dropout: before each head.
        seed: a head starts from values that depend on this and its task's name alone.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Iterable[TaskSpec],
        *,
        hidden_size: int,
        pooling: Pooling = "cls",
        dropout: float = 0.1,
        seed: int = 42,
    ):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict()
        self._facts = EncoderFacts.of(encoder, hidden_size)
        self._kinds: dict[str, TaskKind] = {}
        self._pool = _POOLING[pooling]
        self._dropout = dropout
        self._seed = seed
        for spec in tasks:
            self.add_head(spec)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.heads)

    @property
    def hidden_size(self) -> int:
        """Width of the encoder's output."""
        return self._facts.hidden_size

    def add_head(self, spec: TaskSpec) -> None:
        """Add a task's head; neither the other parameters nor the global random state change.

        Raises:
            ConfigError: the name is taken, or the task's kind gives no head.
        """
        if hasattr(self.heads, spec.name):
            taken = "there is such a head already" if spec.name in self.heads else "PyTorch has a use for that name"
            raise ConfigError(f"tasks: {spec.name!r} can't be a task's name: {taken}")
        kind = kind_of(spec)
        with drawing_from(self._seed ^ zlib.crc32(spec.name.encode())):
            head = new_head(kind, self._facts, self._dropout)
        self._kinds[spec.name], self.heads[spec.name] = kind, head

    def forward(self, task: str, inputs: Mapping[str, Tensor], tokens: Tensor | None = None) -> Tensor:
        """Outputs of one task's head, `(batch, …)`, or `(tokens, …)` where it sees tokens.

        Args:
            task: the task.
            inputs: the tokenizer's, each `(batch, tokens)`.
            tokens: for a head that sees tokens, bool `(batch, tokens)`: of which outputs are wanted, in their order; of
                all that are no padding if None.

        Raises:
            UnknownTaskError: the model has no such head.
        """
        if task not in self.heads:
            raise UnknownTaskError(f"expected one of the tasks {', '.join(self.tasks)}, got {task!r}")
        kind, encoded = self._kinds[task], self.encoder(**inputs)
        if kind.sees == "text":
            seen = self._pool(encoded, inputs)
        else:
            seen = encoded.last_hidden_state[inputs["attention_mask"].bool() if tokens is None else tokens]
        more = (word_embeddings(self.encoder),) if kind.sees_embeddings else ()
        outputs: Tensor = self.heads[task](seen, *more)
        return outputs

    def exchanged(self) -> dict[str, Tensor]:
        """What may be exchanged, by name, the encoder's first: every parameter, and every floating-point buffer that
        belongs to the model's state."""
        persistent = self.state_dict().keys()
        tensors: dict[str, Tensor] = dict(self.named_parameters())
        return tensors | {n: b for n, b in self.named_buffers() if n in persistent and b.is_floating_point()}

    def shape(self) -> ModelShape:
        """The exchanged tensors' names, by where in the model they are."""
        names = self.exchanged()
        part_of, norms = parts_of(self.encoder), norms_of(self.encoder)
        encoder = [name for name in names if name.startswith("encoder.")]
        return ModelShape(
            parts={name: part_of(name.removeprefix("encoder.")) for name in encoder},
            heads={task: [name for name in names if name.startswith(f"heads.{task}.")] for task in self.heads},
            norms=frozenset(name for name in encoder if name.removeprefix("encoder.").rpartition(".")[0] in norms),
        )


def require_length(encoder: Any, max_length: int) -> None:
    """Check that an encoder has positions for inputs of so many tokens.

    Raises:
        ConfigError: it doesn't.
    """
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    if positions is not None and 0 <= positions < max_length:  # XLNet has -1, for no limit
        raise ConfigError(f"training.max_length: the encoder has {positions} positions, asked for {max_length} tokens")


def _pooled_cls(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The encoder's own pooler where it has one, else the first token's hidden state."""
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled
    first: Tensor = output.last_hidden_state[:, 0]
    return first


def _pooled_mean(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The mean of the hidden states of the tokens that are no padding."""
    hidden: Tensor = output.last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


_POOLING: Mapping[Pooling, Callable[[Any, Mapping[str, Tensor]], Tensor]] = {"cls": _pooled_cls, "mean": _pooled_mean}
