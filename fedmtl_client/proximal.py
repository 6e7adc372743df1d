"""FedProx (Li et al. 2020, arXiv:1812.06127): local training is held to the model that it began with.

What a client minimises is its loss plus μ/2 times the squared distance to the received parameters w₀. The term's
gradient is μ (w - w₀), which is added where the loss's own is: no second graph, and one copy of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class ProximalTerm:
    """One round's term.

    Args:
        parameters: those that are trained, as they were received; they are copied.
        mu: how strongly they are held, above 0.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], mu: float):
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in parameters]
        self._mu = mu

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the term's gradient to the parameters'. One without a gradient hasn't been moved by the loss either."""
        for parameter, received in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - received, alpha=self._mu)
