"""The PyTorch modules of a multi-task model without memory for their values, which are stored in components."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.runtime.allocator import give_back_freed_blocks
from fedmtl_core.wire.layout import Component, Layout

_MOST_FREED = 16 * 2**20
"""Bytes of freed tensors after which memory is returned to the system."""


class Skeleton:
    """Modules whose tensors take no memory after they are packed. `filled` makes copies with values.

    Args:
        model: a model on CPU; the skeleton owns it from now on.
    """

    def __init__(self, model: MultiTaskModel):
        self.model = model
        """The modules. After `empty`, only the names, shapes and dtypes of their tensors have a meaning."""

    @property
    def architecture(self) -> str:
        """The name of the encoder's class."""
        return type(self.model.encoder).__name__

    def pack(self, scope: str, names: Iterable[str]) -> Component:
        """Copy the values of some tensors into a new component. This must happen before `empty`."""
        values = self.model.exchanged()
        return Component.pack(scope, {name: values[name].detach() for name in names})

    def take_base(self) -> dict[str, Component]:
        """Move the values of the base into new components, by scope. This must happen before `empty`, and after `pack`.

        The base may be most of the process's memory, so each of its tensors is freed as soon as it is copied.
        """
        return {scope: _taken(scope, tensors) for scope, tensors in self.model.base().items()}

    def empty(self) -> None:
        """Free the memory of the tensors' values, and keep their shapes and dtypes."""
        for tensor in self._tensors().values():
            tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

    def filled(self, views: Mapping[str, Tensor]) -> MultiTaskModel:
        """Copy the modules, with the given tensors themselves as parameters and buffers.

        Args:
            views: tensors by name, of the skeleton's shapes and dtypes. Tensors not given stay empty.
        """
        empty = self._tensors()
        lent: dict[int, object] = {
            id(empty[name]): nn.Parameter(view, requires_grad=empty[name].requires_grad)
            if isinstance(empty[name], nn.Parameter)
            else view
            for name, view in views.items()
        }
        return copy.deepcopy(self.model, lent)

    def _tensors(self) -> dict[str, Tensor]:
        base = (tensors for tensors in self.model.base().values())
        return {name: one for tensors in (self.model.exchanged(), *base) for name, one in tensors.items()}


def _taken(scope: str, tensors: Mapping[str, Tensor]) -> Component:
    layout = Layout.of(scope, tensors)
    component = Component(layout, torch.empty(layout.num_bytes, dtype=torch.uint8))  # takes no memory yet
    freed = 0
    for name, view in component.views().items():
        view.copy_(tensors[name].detach())
        _free(tensors[name])
        freed += view.nbytes
        if freed >= _MOST_FREED:  # otherwise the heap keeps it, and the base is there twice
            give_back_freed_blocks()
            freed = 0
    component.clear_padding()
    return component


def _free(tensor: Tensor) -> None:
    tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
