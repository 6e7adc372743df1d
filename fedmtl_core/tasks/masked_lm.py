"""Masked-language modeling on a client's own texts: Devlin et al. 2019, arXiv:1810.04805, section 3.1.

The model predicts 15 % of a text's tokens. Of these, 80 % are replaced by the mask token, 10 % by a random token, and
10 % are unchanged. No labels are needed, so any client with texts can participate.

The output layer is tied to the encoder's word embeddings, which all clients share. The head itself has only a transform
and a bias per word. Only the masked tokens go through it, since a product with all words for every token would dominate
the computation.
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
from fedmtl_core.tasks.kinds import Array, Collate, EncoderInfo, Row, TaskKind, cut_rows
from fedmtl_core.tasks.spec import METRICS_OF


class MaskedLMHead(nn.Module):
    """BERT's head: a dense layer, the encoder's activation, a layer norm, and a product with the word embeddings.

    `(targets, hidden_size)` to `(targets, vocabulary)`.

    Args:
        encoder: the properties of the encoder whose activation, norms and embeddings the head follows.
    """

    def __init__(self, encoder: EncoderInfo):
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
    """Predicts masked tokens. A subclass with its own name may mask differently."""

    name = "masked_lm"
    metrics = METRICS_OF["masked_lm"]
    has_labels = False
    is_labelled = False
    sees = "tokens"
    sees_embeddings = True

    mask_probability: ClassVar[float] = 0.15
    """Share of the tokens to predict; tokens that a tokenizer adds, such as [CLS], are never predicted."""
    replaced_by_mask: ClassVar[float] = 0.8
    """Share of the tokens to predict that are replaced by the mask token."""
    replaced_by_random: ClassVar[float] = 0.1
    """Share of the tokens to predict that are replaced by a random token."""

    def head(self, encoder: EncoderInfo, dropout: float) -> nn.Module:
        if not encoder.vocabulary_size:
            raise ConfigError(
                f"tasks.{self.spec.name}.type: masked_lm needs an encoder with word embeddings; use one such as BERT"
            )
        return MaskedLMHead(encoder)

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    def reduce_outputs(self, outputs: Tensor) -> Tensor:
        """Return the most likely token; NaN if an output isn't finite, since the argmax of NaN is a token too."""
        return outputs.argmax(dim=1).float().masked_fill(~outputs.isfinite().all(dim=1), math.nan)

    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        reason = metrics.not_finite(outputs)
        return {"masked_accuracy": Undefined(reason) if reason else float((outputs == targets).mean())}

    def require_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.mask_token is None:
            raise ConfigError(
                f"tasks.{self.spec.name}.type: masked_lm needs a tokenizer with a mask token; use an encoder that was "
                f"trained with masking, such as BERT"
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
