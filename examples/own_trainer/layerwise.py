"""Discriminative fine-tuning (Howard and Ruder 2018, arXiv:1801.06146): the deeper a layer, the smaller its steps."""

from __future__ import annotations

import re

import torch
from torch.optim.lr_scheduler import LRScheduler

from fedmtl_client.trainer import Trainer
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.tasks.plan import TrainingPlan
from fedmtl_core.tasks.spec import TaskSpec

_LAYER = re.compile(r"encoder\.(?:.*\.)?layer\.(\d+)\.")


class LayerwiseTrainer(Trainer):
    """Trains the head with the plan's learning rate, and each layer with `decay` times the rate of the layer above.

    Args:
        spec, plan, device: see `Trainer`.
        decay: the factor between layers, above 0; 1 is plain training.
    """

    def __init__(self, spec: TaskSpec, plan: TrainingPlan, device: torch.device, *, decay: float = 0.9):
        super().__init__(spec, plan, device)
        if not decay > 0:
            raise ValueError(f"decay: expected a number above 0, got {decay}")
        self._decay = decay

    def optimizer(
        self, model: MultiTaskModel, steps_per_round: int, round_: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        plan = self.plan
        groups = [
            {
                "params": [parameter],
                "lr": plan.learning_rate * self._decay**depth,
                "weight_decay": plan.weight_decay if parameter.ndim >= 2 else 0.0,
            }
            for parameter, depth in _depths(model).items()
        ]
        optimizer = torch.optim.AdamW(groups)
        return optimizer, self.schedule(optimizer, steps_per_round, round_)


def _depths(model: MultiTaskModel) -> dict[torch.nn.Parameter, int]:
    """Return the number of layers above each parameter: 0 for the head, 1 for the last layer and its successors."""
    layers = {name: int(found[1]) for name, _ in model.named_parameters() if (found := _LAYER.match(name))}
    num_layers = max(layers.values(), default=-1) + 1

    def depth(name: str) -> int:
        if name.startswith("heads."):
            return 0
        if name in layers:
            return num_layers - layers[name]
        return num_layers + 1 if name.startswith("encoder.embeddings.") else 1

    return {parameter: depth(name) for name, parameter in model.named_parameters()}
