"""A FedMTL task's model for `transformers`: an encoder, pooling, and one linear head.

`fedmtl-server export` copies this file into the folder of a model that no class of `transformers` computes. The file
needs no other part of FedMTL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class FedMTLConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration of `FedMTLForSequenceClassification`.

    Args:
        encoder: the encoder's own configuration, with its `model_type`.
        of_encoder_decoder: whether `encoder` describes an encoder-decoder; this model has only its encoder.
        hidden_size: width of the encoder's output; None for the `hidden_size` of the encoder's configuration.
        pooling: the head's input, without padding. `cls` is the encoder's pooled first token, or the first token's
            hidden state if the encoder has no pooler. `mean` is the mean of all tokens' hidden states. `last` is the
            last token's hidden state.
        classifier_dropout: dropout rate before the head in training.
    """

    model_type = "fedmtl"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        of_encoder_decoder: bool = False,
        hidden_size: int | None = None,
        pooling: str = "cls",
        classifier_dropout: float = 0.0,
        **kwargs: Any,
    ):
        self.encoder = encoder or {}
        self.of_encoder_decoder = of_encoder_decoder
        self.hidden_size = hidden_size
        self.pooling = pooling
        self.classifier_dropout = classifier_dropout
        super().__init__(**kwargs)


class FedMTLForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """The model of one FedMTL task: encoder, pooling and linear head."""

    config_class = FedMTLConfig
    base_model_prefix = "encoder"

    def __init__(self, config: FedMTLConfig):
        super().__init__(config)
        encoder = AutoModel.from_config(AutoConfig.for_model(**config.encoder))
        self.encoder = encoder.encoder if config.of_encoder_decoder else encoder
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size or self.encoder.config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> SequenceClassifierOutput:
        """Return logits `(batch, num_labels)`, and the loss if `labels` are given."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        batch = {name: one for name, one in given.items() if one is not None}
        batch = _padded_behind(batch, self._is_token(batch))
        output = self.encoder(**batch)
        logits = self.classifier(self.dropout(self._pooled(output, self._is_token(batch))))
        loss = None
        if labels is not None and self.config.problem_type == "regression":
            loss = nn.functional.mse_loss(logits[:, 0], labels.to(logits.dtype))
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _is_token(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return a mask `(batch, tokens)` of the positions that aren't padding; None if padding is unknown."""
        if "attention_mask" in inputs:
            mask: Tensor = inputs["attention_mask"]
            return mask.bool()
        ids, padding = inputs.get("input_ids"), getattr(self.encoder.config, "pad_token_id", None)
        return None if ids is None or padding is None else ids != padding

    def _pooled(self, output: Any, tokens: Tensor | None) -> Tensor:
        hidden: Tensor = output.last_hidden_state
        if tokens is None:
            tokens = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if self.config.pooling == "mean":
            mask = tokens.unsqueeze(-1).to(hidden.dtype)
            return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        if self.config.pooling == "last":
            last = (tokens * torch.arange(hidden.shape[1], device=hidden.device)).argmax(dim=1)
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        return hidden[:, 0] if pooled is None else pooled


def _padded_behind(inputs: dict[str, Any], tokens: Tensor | None) -> dict[str, Any]:
    """Return the inputs with padding moved from the front of each row to its end, as in training."""
    if tokens is None or not tokens.numel() or not (shifts := tokens.int().argmax(dim=1)).any():
        return inputs
    batch, length = tokens.shape
    rows = torch.arange(batch, device=tokens.device)[:, None]
    columns = (torch.arange(length, device=tokens.device) + shifts[:, None]) % length
    return {
        name: one[rows, columns] if isinstance(one, Tensor) and one.shape[:2] == tokens.shape else one
        for name, one in inputs.items()
    }
