"""Between the wire and the model: a slice into the client's model, and the trained model into an update."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.layout import Component, Layout, require_scopes
from fedmtl_core.modeling import MultiTaskModel
from fedmtl_core.plan import UpdateKind


class ClientModelSynchronizer:
    """Keeps a client's model in step with its slice.

    Args:
        task: the client's task, whose head the model has; or None for a model with every head.
    """

    def __init__(self, task: str | None = None):
        self.task = task
        self._received: Mapping[str, Component] = {}

    def load(self, model: MultiTaskModel, components: Mapping[str, Component]) -> None:
        """Put a slice into a model, bit for bit, on whatever device the model is.

        Args:
            model: an encoder and the slice's heads.
            components: the slice, by scope. It is kept, unchanged, for `update`.

        Raises:
            LayoutMismatchError: the model isn't the one that the slice was cut from; the model is unchanged then.
        """
        own = model.parameters_by_scope()
        if self.task is not None and set(model.tasks) != {self.task}:
            raise LayoutMismatchError(f"expected a model with the head {self.task!r}, got {', '.join(model.tasks)}")
        try:
            require_scopes(sorted(own), sorted(components))
            for scope, component in components.items():
                Layout.of(scope, own[scope]).require_same(component.layout)
        except LayoutMismatchError as error:
            raise LayoutMismatchError(f"the slice doesn't fit this client's model: {error}") from None
        with torch.no_grad():
            for scope, component in components.items():
                for name, view in component.views().items():
                    own[scope][name].copy_(view)
        self._received = components

    def update(self, model: MultiTaskModel, kind: UpdateKind) -> list[Component]:
        """What to send back: the model's parameters, or what changed in them since `load`.

        Args:
            model: the model that was loaded into.
            kind: `parameters` or `delta`.

        Returns:
            Components on CPU in the slice's order and layout. A delta is trained minus received.
        """
        own = model.parameters_by_scope()
        components = [Component.pack(scope, own[scope]) for scope in self._received]
        if kind == "delta":
            for component in components:
                received = self._received[component.scope]
                for trained, before in zip(component.runs(), received.runs(), strict=True):
                    trained.sub_(before)
        return components
