"""A task type for ordered classes, such as grades: CORAL (Cao et al. 2020, arXiv:1901.07884)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn

from fedmtl_core.tasks.evaluation import Undefined
from fedmtl_core.tasks.kinds import Array, EncoderInfo, TaskKind


class OrdinalHead(nn.Module):
    """One direction for all classes, and thresholds between neighbors: `(batch, hidden)` to `(batch, K - 1)`.

    Output k is the logit of "the class is above k".
    """

    def __init__(self, hidden_size: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.direction = nn.Linear(hidden_size, 1, bias=False)
        self.thresholds = nn.Parameter(torch.linspace(1.0, -1.0, num_classes - 1))

    def forward(self, pooled: Tensor) -> Tensor:
        shared: Tensor = self.direction(self.dropout(pooled))
        return shared + self.thresholds


class Ordinal(TaskKind):
    """A task whose labels are ordered from the lowest to the highest."""

    name = "ordinal"
    metrics = ("quadratic_kappa", "accuracy", "within_one")
    metric_bounds: ClassVar = {"quadratic_kappa": (-1, 1), "accuracy": (0, 1), "within_one": (0, 1)}

    def head(self, encoder: EncoderInfo, dropout: float) -> nn.Module:
        return OrdinalHead(encoder.hidden_size, len(self.spec.labels), dropout)

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        is_above = targets[:, None] > torch.arange(outputs.shape[1], device=outputs.device)
        rows = nn.functional.binary_cross_entropy_with_logits(outputs, is_above.to(outputs.dtype), reduction="none")
        return rows.sum(dim=1).mean() if reduction == "mean" else rows.sum(dim=1)

    def measure(self, outputs: Array, targets: Array) -> Mapping[str, float]:
        predictions = (outputs > 0).sum(axis=1)
        targets = targets.astype(int)
        is_one_class = len({*predictions.tolist(), *targets.tolist()}) == 1
        return {
            "quadratic_kappa": Undefined("targets and predictions are all of one class")
            if is_one_class
            else float(cohen_kappa_score(targets, predictions, weights="quadratic")),
            "accuracy": float((predictions == targets).mean()),
            "within_one": float((abs(predictions - targets) <= 1).mean()),
        }
