"""FedProx (Li et al. 2020, arXiv:1812.06127): a penalty keeps local training close to the received model.

A client minimizes its loss plus μ/2 times the squared distance to the received parameters w₀. The term's gradient,
μ (w - w₀), is added to the loss's gradient. This takes no second graph, and one copy of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class ProximalTerm:
    """The proximal term of one round.

    Args:
        parameters: the trained parameters with their received values, which are copied.
        mu: the weight μ of the term, above 0.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], mu: float):
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in parameters]
        self._mu = mu

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the term's gradient. Parameters without a gradient are skipped: the loss hasn't moved them either."""
        for parameter, received in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - received, alpha=self._mu)
