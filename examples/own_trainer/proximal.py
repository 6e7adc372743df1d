"""FedProx (Li et al. 2020, arXiv:1812.06127): local training is held to the model that it began with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedmtl_client.trainer import Trainer, TrainingResult
from fedmtl_core.modeling import MultiTaskModel
from fedmtl_core.plan import TrainingPlan
from fedmtl_core.tasks import TaskSpec


class ProximalTrainer(Trainer):
    """Adds mu/2 times the squared distance to the received model to the loss.

    Args:
        spec, plan, device: as for `Trainer`.
        mu: how strongly it is held; 0 is plain training.
    """

    def __init__(self, spec: TaskSpec, plan: TrainingPlan, device: torch.device, *, mu: float = 0.1):
        super().__init__(spec, plan, device)
        self._mu = mu
        self._received: list[Tensor] = []

    def train(self, model: MultiTaskModel, *args: Any, **options: Any) -> TrainingResult:
        self._received = [parameter.detach().clone() for parameter in model.parameters()]
        return super().train(model, *args, **options)

    def loss(self, model: MultiTaskModel, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        pairs = zip(model.parameters(), self._received, strict=True)
        distance = torch.stack([(now - before).square().sum() for now, before in pairs]).sum()
        return super().loss(model, inputs, labels) + self._mu / 2 * distance
