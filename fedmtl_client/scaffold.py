"""The client's side of SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378), with the paper's option II.

Training steps use g - c_i + c instead of the gradient g. Here c_i is this client's control variate, and c is the
server's, which comes with the slice. After training, c_i⁺ = c_i - c - Δ / s, where s is the sum of the steps' learning
rates. Δ is the update as sent, lossy encoding included, so that the server computes the same c_i⁺ from it.
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
    """A client's variates, in memory only. A restarted client starts from 0, and its updates say so to the server."""

    def __init__(self) -> None:
        self._own: dict[str, Component] = {}
        self._server: Mapping[str, Component] = {}
        self._next: tuple[int, dict[str, Component]] | None = None
        self.round = 0
        """The round of the last update that changed the variates; 0 for none."""

    def begin(self, server: Mapping[str, Component], since: int) -> None:
        """Begin a round.

        Args:
            server: the server's variates, by the scope of the component that each belongs to.
            since: the round in which the server's variates began; older variates of this client are discarded.
        """
        self._server, self._next = server, None
        if self.round < since:
            self.forget()

    def correction(self, model: MultiTaskModel) -> Callable[[], None]:
        """Return a function that adds c - c_i to a model's gradients, on the model's device."""
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
                # A parameter without influence on this client's loss has gradient 0; other clients may change it.
                parameter.grad = difference.clone() if parameter.grad is None else parameter.grad.add_(difference)

        return correct

    def trained(self, round_: int, sent: Iterable[EncodedComponent], learning_rate_sum: float) -> None:
        """Compute the next variates from a round's training.

        Args:
            round_: the slice's round.
            sent: the update, a delta, as it was encoded.
            learning_rate_sum: sum over all steps; with 0 the variates stay as they are.
        """
        if learning_rate_sum:
            self._next = (round_, {one.layout.scope: self._following(one, learning_rate_sum) for one in sent})

    def counted(self) -> None:
        """Use the next variates, since the update counts. The server ignores variates of other updates too."""
        if self._next is not None:
            self.round, self._own = self._next
        self._next = None

    def forget(self) -> None:
        """Start from 0, since another run or the server's variates have begun."""
        self._own, self.round, self._next = {}, 0, None

    def _following(self, sent: EncodedComponent, learning_rate_sum: float) -> Component:
        """Return a component's next variate."""
        scope, layout = sent.layout.scope, sent.layout.layout
        delta = decode(layout, sent.layout.encoding, sent.data)
        following = Component(control_layout(layout))
        values = vector(following)
        values.copy_(torch.cat([run.to(torch.float32) for run in delta.runs()]))
        values.div_(-learning_rate_sum).sub_(vector(self._server[scope]))
        if scope in self._own:
            values.add_(vector(self._own[scope]))
        return following
