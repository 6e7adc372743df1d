"""Loads slices into the client's model, and makes updates of the trained model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set

import torch
from torch import Tensor

from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.identifiers import name_some
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.tasks.plan import UpdateKind
from fedmtl_core.wire.layout import Component, Layout


class ClientModelSynchronizer:
    """Loads slices into a client's model, and returns the model's parameters or deltas for the update.

    Args:
        task: the client's task, whose head the model has; None for a model with every head.
        local: names of the model's local parameters, which no slice has.
    """

    def __init__(self, task: str | None = None, local: Iterable[str] = ()):
        self.task = task
        self.local = frozenset(local)
        self._received: Mapping[str, Component] = {}
        self._read_only: Collection[str] = ()
        self._shared: Mapping[str, Component] = {}
        self._shared_with: MultiTaskModel | None = None

    def load(
        self,
        model: MultiTaskModel,
        components: Mapping[str, Component],
        *,
        share: bool = False,
        read_only: Collection[str] = (),
    ) -> None:
        """Copy a slice into a model, bit for bit, on any device.

        Args:
            model: an encoder and the slice's heads.
            components: the slice, by scope. It is kept for `update`.
            share: let a model on CPU use the components' own memory, so that nothing is copied in either direction.
                The components then change with the model, and deltas aren't available.
            read_only: the scopes of the components that `update` leaves out.

        Raises:
            LayoutMismatchError: the slice has other tensors than the model; the model is unchanged then.
        """
        own = model.exchanged()
        self._require_fit(model, own, components)
        self._received, self._read_only = components, read_only
        if not share:
            _copy(components, own)
            self._shared, self._shared_with = {}, None
            return
        for component in components.values():
            component.lend_to(own)
        self._shared, self._shared_with = dict(components), model

    def update(self, model: MultiTaskModel, kind: UpdateKind) -> list[Component]:
        """Return the model's parameters, or their change since `load`.

        Args:
            model: the model that the slice was loaded into.
            kind: `parameters` or `delta`.

        Returns:
            Components on CPU in the slice's order and layout, without the read-only ones. A delta is trained minus
            received. If the model shares the slice's memory, parameters are the slice's own components.

        Raises:
            ValueError: a delta is asked of a model that shares the slice's memory.
            LayoutMismatchError: training has changed the shape or dtype of one of the model's tensors.
        """
        if self._shared_with is model and kind == "delta":
            raise ValueError("a model that shares its slice's memory has no delta")
        own = model.exchanged()
        self._require_unchanged(own)
        if self._shared_with is model:
            for component in self._shared.values():
                _take_back(component, own)
            return [component for scope, component in self._shared.items() if scope not in self._read_only]
        components = [
            Component.pack(scope, {spec.name: own[spec.name] for spec in received.layout.tensors})
            for scope, received in self._received.items()
            if scope not in self._read_only
        ]
        if kind == "delta":
            for component in components:
                component.subtract(self._received[component.scope])
        return components

    def _require_unchanged(self, own: Mapping[str, Tensor]) -> None:
        """Check that a trained model's tensors still have the received layout."""
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
    """Check that the components have each of the expected tensors once, and no others."""
    scope_of: dict[str, str] = {}
    for scope, component in components.items():
        for spec in component.layout.tensors:
            if spec.name not in expected:
                raise LayoutMismatchError(f"{scope}: the model has no tensor {spec.name!r}, or keeps it local")
            if spec.name in scope_of:
                raise LayoutMismatchError(f"{spec.name!r} occurs twice, in {scope_of[spec.name]} and in {scope}")
            scope_of[spec.name] = scope
    if missing := sorted(expected - scope_of.keys()):
        raise LayoutMismatchError(f"the tensors {name_some(missing)} are missing in the slice")


def _copy(components: Mapping[str, Component], own: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for component in components.values():
            for name, view in component.views().items():
                own[name].copy_(view)


def _take_back(component: Component, own: Mapping[str, Tensor]) -> None:
    """Update a component from the model that shares its memory, and make the model share that memory again.

    Optimizers write into the parameters' memory. A module may give a buffer new memory, which the component doesn't
    see (`self.x = 0.9 * self.x + …`, as I-BERT does).
    """
    views = component.views()
    moved = {name: own[name].detach().clone() for name, view in views.items() if not _is_view(own[name], view)}
    for name, value in moved.items():
        views[name].copy_(value)
        own[name].data = views[name]


def _is_view(tensor: Tensor, view: Tensor) -> bool:
    return tensor.data_ptr() == view.data_ptr() and tensor.stride() == view.stride()
