"""A FedMTL task's model for `transformers`: an encoder, its pooling, and one linear head.

`fedmtl-server export` copies this file beside a model that no class of `transformers` computes; it needs nothing else
of FedMTL.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class FedMTLConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration.

    Args:
        encoder: the encoder's own configuration, with its `model_type`.
        of_encoder_decoder: whether that is an encoder-decoder's, of which this model has the encoder alone.
        hidden_size: width of the encoder's output; what its configuration calls so if None.
        pooling: what the head sees: `cls`, the encoder's pooled first token, or its hidden state where there is no
            pooler; or `mean`, the mean of all tokens' that are no padding.
        classifier_dropout: before the head, in training.
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
    """The model of one task."""

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
        """Logits `(batch, num_labels)`, and the loss if there are labels."""
        if attention_mask is None and input_ids is not None:
            attention_mask = torch.ones_like(input_ids)
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        logits = self.classifier(self.dropout(self._pooled(output, attention_mask)))
        loss = None
        if labels is not None and self.config.problem_type == "regression":
            loss = nn.functional.mse_loss(logits[:, 0], labels.to(logits.dtype))
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _pooled(self, output: Any, attention_mask: Tensor | None) -> Tensor:
        hidden: Tensor = output.last_hidden_state
        if self.config.pooling == "mean":
            mask = torch.ones(hidden.shape[:2], device=hidden.device) if attention_mask is None else attention_mask
            mask = mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        return hidden[:, 0] if pooled is None else pooled
