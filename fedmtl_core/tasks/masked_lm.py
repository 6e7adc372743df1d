"""Masked-language modelling on a client's own texts: Devlin et al. 2019, arXiv:1810.04805, section 3.1.

Of the tokens of a text, 15 % are to be found again: 80 % of these are replaced by the mask token, 10 % by a random one,
and 10 % stay. It needs no labels, so that whoever has texts can take part.

The output layer is tied to the encoder's word embeddings, which are everybody's: the head has but a transform, and a
bias for each word. Only the masked tokens go through it: a product with all words for every token would be most of the
work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn, zeros
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks import metrics
from fedmtl_core.tasks.evaluation import Undefined
from fedmtl_core.tasks.kinds import Array, Collate, EncoderFacts, Row, TaskKind, cut_rows
from fedmtl_core.tasks.spec import METRICS_OF


class MaskedLMHead(nn.Module):
    """BERT's: a dense layer, the encoder's activation and a layer norm; then a product with the word embeddings.

    `(targets, hidden_size)` to `(targets, vocabulary)`.

    Args:
        encoder: whose activation, norms and embeddings it takes after.
    """

    def __init__(self, encoder: EncoderFacts):
        super().__init__()
        self.dense = nn.Linear(encoder.hidden_size, encoder.embedding_size)
        self.activation = ACT2FN[encoder.activation]
        self.norm = nn.LayerNorm(encoder.embedding_size, eps=encoder.norm_eps)
        self.bias = nn.Parameter(zeros(encoder.vocabulary_size))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, states: Tensor, embeddings: Tensor) -> Tensor:
        return nn.functional.linear(self.norm(self.activation(self.dense(states))), embeddings, self.bias)


class MaskedLM(TaskKind):
    """Tokens that were masked are to be found again. A subclass with a name of its own may mask otherwise."""

    name = "masked_lm"
    metrics = METRICS_OF["masked_lm"]
    has_labels = False
    is_labelled = False
    sees = "tokens"
    sees_embeddings = True

    mask_probability: ClassVar[float] = 0.15
    """Share of the tokens that are to be found again; those that a tokenizer adds, such as [CLS], never are."""
    replaced_by_mask: ClassVar[float] = 0.8
    """Of these, the share that is replaced by the mask token."""
    replaced_by_random: ClassVar[float] = 0.1
    """And by a random token."""

    def head(self, encoder: EncoderFacts, dropout: float) -> nn.Module:
        if not encoder.vocabulary_size:
            raise ConfigError(f"tasks.{self.spec.name}.type: masked_lm needs an encoder that has word embeddings")
        return MaskedLMHead(encoder)

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    def kept(self, outputs: Tensor) -> Tensor:
        """The most likely token, NaN where an output isn't finite: the argmax of NaN is a token too."""
        return outputs.argmax(dim=1).float().masked_fill(~outputs.isfinite().all(dim=1), math.nan)

    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        reason = metrics.not_finite(outputs)
        return {"masked_accuracy": Undefined(reason) if reason else float((outputs == targets).mean())}

    def require_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.mask_token is None:
            raise ConfigError(
                f"tasks.{self.spec.name}.type: masked_lm needs a tokenizer that has a mask token; take an encoder that "
                f"was trained with one, such as BERT"
            )

    def encode(
        self,
        texts: Sequence[tuple[str, ...]],
        targets: Sequence[Any],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> Mapping[str, Sequence[Any]]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length, return_special_tokens_mask=True)
        return {**encoded, **cut_rows(encoded)}

    def collator(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Collate:
        mask = DataCollatorForLanguageModeling(
            tokenizer,
            mlm_probability=self.mask_probability,
            mask_replace_prob=self.replaced_by_mask,
            random_replace_prob=self.replaced_by_random,
            seed=seed,
        )

        def collate(rows: Sequence[Row]) -> tuple[dict[str, Tensor], Tensor]:
            batch = dict(mask([dict(row) for row in rows]))
            return batch, batch.pop("labels")

        return collate
