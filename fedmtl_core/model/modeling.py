"""The multi-task model: a shared encoder and one head per task (MT-DNN; Liu et al. 2019, arXiv:1901.11504)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from fedmtl_core.errors import ConfigError, UnknownTaskError
from fedmtl_core.model.encoders import TOY_MODEL, load_encoder, load_tokenizer, locate
from fedmtl_core.model.layers import norms_of, parts_of
from fedmtl_core.model.pooling import encode_texts, encode_tokens
from fedmtl_core.model.sharing import ModelShape
from fedmtl_core.randomness import drawing_from
from fedmtl_core.tasks.kinds import EncoderFacts, TaskKind, new_head, word_embeddings
from fedmtl_core.tasks.plan import Pooling
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import TaskSpec

__all__ = ["TOY_MODEL", "MultiTaskModel", "load_encoder", "load_tokenizer", "locate"]


class MultiTaskModel(nn.Module):
    """An encoder and the heads of some tasks: all of them on the server, one on a client.

    Args:
        encoder: takes `input_ids` and the rest of a tokenizer's output; returns a Hugging Face model output.
        hidden_size: width of the encoder's output.
        pooling: what a head sees of a text: `cls`, the encoder's pooled first token; `mean`, that of all tokens; or
            `last`, the last token.
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
        self._pooling: Pooling = pooling
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
        kind = self._kinds[task]
        if kind.sees == "text":
            seen = encode_texts(self.encoder, inputs, self._pooling)
        else:
            seen = encode_tokens(self.encoder, inputs, tokens)
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
