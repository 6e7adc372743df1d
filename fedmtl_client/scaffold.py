"""The client's side of SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378), with the paper's option II.

Training steps against g - c_i + c in place of the gradient g, with c_i this client's control variate and c the
server's, which comes with the slice. Afterwards c_i⁺ = c_i - c - Δ / s, where Δ is the update as it was sent, for the
server comes to the same from it, and s the sum of the steps' learning rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.wire.controls import control_layout, parameter_of, vector
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.encodings import decode
from fedmtl_core.wire.layout import Component


class ControlVariates:
    """A client's variates, in memory: who starts anew begins with 0, and tells the server so."""

    def __init__(self) -> None:
        self._own: dict[str, Component] = {}
        self._server: Mapping[str, Component] = {}
        self._next: tuple[int, dict[str, Component]] | None = None
        self.round = 0
        """Of the last update that they have taken in; 0 for none."""

    def begin(self, server: Mapping[str, Component], since: int) -> None:
        """Begin a round.

        Args:
            server: the server's variates, by the scope that each is for.
            since: the round in which the variates began; this client's are void if they are of one before.
        """
        self._server, self._next = server, None
        if self.round < since:
            self.forget()

    def correction(self, model: MultiTaskModel) -> Callable[[], None]:
        """What adds c - c_i to a model's gradients, on whatever device it is."""
        parameters = dict(model.named_parameters())
        pairs: list[tuple[Tensor, Tensor]] = []
        for scope, server in self._server.items():
            difference = server.clone()
            if scope in self._own:
                difference.subtract(self._own[scope])
            for name, view in difference.views().items():
                parameter = parameters.get(parameter_of(name))
                if parameter is not None and parameter.requires_grad:
                    pairs.append((parameter, view.to(parameter.device, parameter.dtype)))

        @torch.no_grad()
        def correct() -> None:
            for parameter, difference in pairs:
                # Where the loss doesn't see a parameter its gradient is 0, and other clients' may not be.
                parameter.grad = difference.clone() if parameter.grad is None else parameter.grad.add_(difference)

        return correct

    def trained(self, round_: int, sent: Iterable[EncodedComponent], learning_rate_sum: float) -> None:
        """Note what came of a round's training.

        Args:
            round_: the slice's.
            sent: the update, a delta.
            learning_rate_sum: of all steps; of 0 nothing can be told.
        """
        if learning_rate_sum:
            self._next = (round_, {one.layout.scope: self._following(one, learning_rate_sum) for one in sent})

    def counted(self) -> None:
        """Note that the update counts. That of one which doesn't is of no account to the server either."""
        if self._next is not None:
            self.round, self._own = self._next
        self._next = None

    def forget(self) -> None:
        """Begin with 0: another run has begun, or the server's variates have."""
        self._own, self.round, self._next = {}, 0, None

    def _following(self, sent: EncodedComponent, learning_rate_sum: float) -> Component:
        """A component's next variate."""
        scope, layout = sent.layout.scope, sent.layout.layout
        delta = decode(layout, sent.layout.encoding, sent.data)
        following = Component(control_layout(layout))
        values = vector(following)
        values.copy_(torch.cat([run.to(torch.float32) for run in delta.runs()]))
        values.div_(-learning_rate_sum).sub_(vector(self._server[scope]))
        if scope in self._own:
            values.add_(vector(self._own[scope]))
        return following
