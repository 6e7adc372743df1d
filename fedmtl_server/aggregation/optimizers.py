"""Server optimizers, which turn a round's average into a step of the model.

FedAvgM (Hsu et al. 2019, arXiv:1909.06335); FedAdagrad, FedAdam and FedYogi (Reddi et al. 2021, arXiv:2003.00295,
algorithm 2). The average minus the model is the pseudo-gradient Δ, from which the optimizer computes its step. As in
the papers, the moments have no bias correction.

Optimizers work element by element on flat vectors, and depend on neither layouts nor files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from fedmtl_core.config import ResolvedServerOptimizer, ServerOptimizerConfig
from fedmtl_core.errors import ConfigError
from fedmtl_core.plugins import Registry, attribute_errors

MOMENTUM, SECOND_MOMENT = "momentum", "second_moment"


class ServerOptimizer(ABC):
    """Base class of server optimizers. To add one, derive a class in your own module and name it in the configuration.

    The same arguments must give the same result to the last bit, because a resumed run computes a round again.

    Args:
        settings: the configuration's section `server_optimizer`, with the optimizer's defaults filled in.
    """

    def __init__(self, settings: ResolvedServerOptimizer):
        self.settings = settings

    @property
    @abstractmethod
    def slots(self) -> Mapping[str, float]:
        """The names of the state vectors, each with its initial value; a vector has one number per model parameter."""

    @abstractmethod
    def step(self, delta: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute one round's step for a part of a component.

        Args:
            delta: float32 `(n,)`, the average minus the model. The step must change neither `delta` nor `state`.
            state: by slot, float32 `(n,)`, the state that the last step returned.

        Returns:
            The values to add to the model, and the state for the next step; each float32 `(n,)`.
        """


class FedAvgM(ServerOptimizer):
    """Momentum: m = β₁ m + Δ, x += η m (Hsu et al. 2019, arXiv:1909.06335, section 4.3)."""

    slots = MappingProxyType({MOMENTUM: 0.0})

    def step(self, delta: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        momentum = torch.add(delta, state[MOMENTUM], alpha=self.settings.beta_1)
        return self.settings.learning_rate * momentum, {MOMENTUM: momentum}


class _Adaptive(ServerOptimizer):
    """m = β₁ m + (1 - β₁) Δ, x += η m / (√v + τ), v₀ = τ² (Reddi et al. 2021, arXiv:2003.00295, algorithm 2).

    Each subclass defines the update of v.
    """

    @property
    def slots(self) -> Mapping[str, float]:
        return {MOMENTUM: 0.0, SECOND_MOMENT: self.settings.tau**2}

    def step(self, delta: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        settings = self.settings
        momentum = (settings.beta_1 * state[MOMENTUM]).add_(delta, alpha=1 - settings.beta_1)
        second = self._second_moment(state[SECOND_MOMENT], delta.square())
        move = (settings.learning_rate * momentum).div_(second.sqrt().add_(settings.tau))
        return move, {MOMENTUM: momentum, SECOND_MOMENT: second}

    @abstractmethod
    def _second_moment(self, second: Tensor, square: Tensor) -> Tensor:
        """Return v after a round.

        Args:
            second: v before the round.
            square: Δ².
        """


class FedAdagrad(_Adaptive):
    """v += Δ²."""

    def _second_moment(self, second: Tensor, square: Tensor) -> Tensor:
        return second + square


class FedAdam(_Adaptive):
    """v = β₂ v + (1 - β₂) Δ²."""

    def _second_moment(self, second: Tensor, square: Tensor) -> Tensor:
        return (self.settings.beta_2 * second).add_(square, alpha=1 - self.settings.beta_2)


class FedYogi(_Adaptive):
    """v -= (1 - β₂) Δ² sign(v - Δ²)."""

    def _second_moment(self, second: Tensor, square: Tensor) -> Tensor:
        return second - (1 - self.settings.beta_2) * square * torch.sign(second - square)


OPTIMIZERS = Registry(
    "server_optimizer.name",
    ServerOptimizer,  # type: ignore[type-abstract]
    {"fedavgm": FedAvgM, "fedadagrad": FedAdagrad, "fedadam": FedAdam, "fedyogi": FedYogi},
)


def make_optimizer(section: ServerOptimizerConfig) -> ServerOptimizer | None:
    """Return the optimizer that a configuration names; None for `fedavg`, where the average becomes the model.

    Raises:
        ConfigError: a custom class can't be loaded or constructed, or its `slots` aren't numbers by name.
    """
    if section.name == "fedavg":
        return None
    optimizer = OPTIMIZERS.make(section.name, section.resolved())
    _require_slots(section.name, optimizer.slots)
    return optimizer


def _require_slots(name: str, slots: Mapping[str, float]) -> None:
    """Check the slots of an optimizer, which may be a plug-in.

    Raises:
        ConfigError: the slots aren't a mapping of identifiers to numbers.
    """
    with attribute_errors(OPTIMIZERS.key, name):
        values = {str(slot): float(value) for slot, value in slots.items()}
    if bad := [slot for slot in values if not slot.isidentifier()]:
        raise ConfigError(f"{OPTIMIZERS.key}: {name}: expected slots that are named like variables, got {bad[0]!r}")
