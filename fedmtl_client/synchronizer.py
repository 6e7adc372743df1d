"""Between the wire and the model: a slice into the client's model, and the trained model into an update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import torch
from torch import Tensor

from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.identifiers import name_some
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.tasks.plan import UpdateKind
from fedmtl_core.wire.layout import Component, Layout


class ClientModelSynchronizer:
    """Keeps a client's model in step with its slice.

    Args:
        task: the client's task, whose head the model has; or None for a model with every head.
        local: names of the model's parameters that are in no slice.
    """

    def __init__(self, task: str | None = None, local: Iterable[str] = ()):
        self.task = task
        self.local = frozenset(local)
        self._received: Mapping[str, Component] = {}
        self._shared: Mapping[str, Component] = {}
        self._shared_with: MultiTaskModel | None = None

    def load(self, model: MultiTaskModel, components: Mapping[str, Component], *, share: bool = False) -> None:
        """Put a slice into a model, bit for bit, on whatever device the model is.

        Args:
            model: an encoder and the slice's heads.
            components: the slice, by scope. It is kept for `update`.
            share: let a model on CPU live in the components' own memory, so that nothing is copied either way. They
                change with it then, and there is no delta.

        Raises:
            LayoutMismatchError: the model isn't the one that the slice was cut from; the model is unchanged then.
        """
        own = model.exchanged()
        self._require_fit(model, own, components)
        self._received = components
        if not share:
            _copy(components, own)
            self._shared, self._shared_with = {}, None
            return
        for component in components.values():
            component.lend_to(own)
        self._shared, self._shared_with = dict(components), model

    def update(self, model: MultiTaskModel, kind: UpdateKind) -> list[Component]:
        """What to send back: the model's parameters, or what changed in them since `load`.

        Args:
            model: the model that was loaded into.
            kind: `parameters` or `delta`.

        Returns:
            Components on CPU in the slice's order and layout. A delta is trained minus received. Parameters are the
            slice's own components where the model shares them.

        Raises:
            ValueError: a delta of a model that shares the slice's memory.
            LayoutMismatchError: training has given one of the model's tensors another shape or dtype.
        """
        if self._shared_with is model and kind == "delta":
            raise ValueError("a model that shares its slice's memory has no delta")
        own = model.exchanged()
        self._require_unchanged(own)
        if self._shared_with is model:
            for component in self._shared.values():
                _take_back(component, own)
            return list(self._shared.values())
        components = [
            Component.pack(scope, {spec.name: own[spec.name] for spec in received.layout.tensors})
            for scope, received in self._received.items()
        ]
        if kind == "delta":
            for component in components:
                component.subtract(self._received[component.scope])
        return components

    def _require_unchanged(self, own: Mapping[str, Tensor]) -> None:
        """Check that a trained model's tensors have the layout in which they came."""
        try:
            for scope, component in self._received.items():
                names = (spec.name for spec in component.layout.tensors)
                component.layout.require_same(Layout.of(scope, {name: own[name] for name in names if name in own}))
        except LayoutMismatchError as error:
            raise LayoutMismatchError(f"training has changed the model's tensors: {error}") from None

    def _require_fit(
        self, model: MultiTaskModel, own: Mapping[str, Tensor], components: Mapping[str, Component]
    ) -> None:
        if self.task is not None and set(model.tasks) != {self.task}:
            raise LayoutMismatchError(f"expected a model with the head {self.task!r}, got {', '.join(model.tasks)}")
        try:
            _require_all(own.keys() - set(self.local), components)
            for scope, component in components.items():
                names = (spec.name for spec in component.layout.tensors)
                Layout.of(scope, {name: own[name] for name in names}).require_same(component.layout)
        except LayoutMismatchError as error:
            raise LayoutMismatchError(f"the slice doesn't fit this client's model: {error}") from None


def _require_all(expected: Set[str], components: Mapping[str, Component]) -> None:
    """Check that components have each of some tensors once, and no others."""
    scope_of: dict[str, str] = {}
    for scope, component in components.items():
        for spec in component.layout.tensors:
            if spec.name not in expected:
                raise LayoutMismatchError(f"{scope}: the model has no tensor {spec.name!r}, or keeps it for itself")
            if spec.name in scope_of:
                raise LayoutMismatchError(f"{spec.name!r} is there twice, in {scope_of[spec.name]} and in {scope}")
            scope_of[spec.name] = scope
    if missing := sorted(expected - scope_of.keys()):
        raise LayoutMismatchError(f"the tensors {name_some(missing)} are missing")


def _copy(components: Mapping[str, Component], own: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for component in components.values():
            for name, view in component.views().items():
                own[name].copy_(view)


def _take_back(component: Component, own: Mapping[str, Tensor]) -> None:
    """Have a component hold what a model that lives in it holds now, and the model live in it again.

    Optimisers write to the memory that parameters are in. A module may give a buffer other memory (`self.x = 0.9 *
    self.x + …`, as I-BERT does), which the component doesn't see.
    """
    views = component.views()
    moved = {name: own[name].detach().clone() for name, view in views.items() if not _is_view(own[name], view)}
    for name, value in moved.items():
        views[name].copy_(value)
        own[name].data = views[name]


def _is_view(tensor: Tensor, view: Tensor) -> bool:
    return tensor.data_ptr() == view.data_ptr() and tensor.stride() == view.stride()
