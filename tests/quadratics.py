"""Clients whose losses are quadratics: where training leads them, and all of them together, has a closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedmtl_client.trainer import Trainer
from fedmtl_core.config import Config
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.plan import TrainingPlan

PLAN = dataclasses.replace(
    Config.model_validate({"tasks": {"sst2": {}}}).plan("sst2"),
    optimizer="sgd",
    batch_size=1,
    local_epochs=1,
    learning_rate=0.1,
    weight_decay=0.0,
    warmup_ratio=0.0,
    max_grad_norm=0.0,
    num_rounds=10**9,  # so long a run has a learning rate that doesn't fall
)
"""Plain gradient descent."""


@dataclass(frozen=True)
class Quadratic:
    """½ Σ a (w - b)², elementwise."""

    curvature: Sequence[float]
    """a"""
    minimum: Sequence[float]
    """b"""

    def loss(self, w: Tensor) -> Tensor:
        a, b = (torch.tensor(values, dtype=w.dtype) for values in (self.curvature, self.minimum))
        return 0.5 * (a * (w - b) ** 2).sum()


class Point(nn.Module):
    """A model that is its one parameter, `encoder.w`."""

    def __init__(self, w: Sequence[float]):
        super().__init__()
        self.adapters = None
        self.encoder = nn.Module()
        self.encoder.w = nn.Parameter(torch.tensor(list(w)))

    @property
    def w(self) -> list[float]:
        return self.encoder.w.tolist()


class Steps:
    """So many rows, which say nothing: with `batch_size` 1, so many steps of an epoch."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._count))

    def collator(self, seed: int) -> Callable[[list[int]], tuple[dict[str, Tensor], Tensor]]:
        return lambda rows: ({}, torch.tensor(rows))


class QuadraticTrainer(Trainer):
    """Trains a `Point` on a `Quadratic`."""

    def __init__(self, quadratic: Quadratic, plan: TrainingPlan = PLAN):
        super().__init__(PRESETS["sst2"], plan, torch.device("cpu"))
        self._quadratic = quadratic

    def loss(self, model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        return self._quadratic.loss(model.encoder.w)


def optimum(quadratics: Sequence[Quadratic], shares: Sequence[float]) -> list[float]:
    """Where Σ p f is least: Σ p a b / Σ p a."""
    pairs = list(zip(quadratics, shares, strict=True))
    return [
        sum(p * q.curvature[i] * q.minimum[i] for q, p in pairs) / sum(p * q.curvature[i] for q, p in pairs)
        for i in range(len(quadratics[0].curvature))
    ]
