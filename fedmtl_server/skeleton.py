"""A multi-task model's PyTorch modules without memory for their values, which live in components."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.wire.layout import Component


class Skeleton:
    """Modules that take no memory for their tensors once these are packed, and of which filled copies are made.

    Args:
        model: on CPU. It is the skeleton's own from now on.
    """

    def __init__(self, model: MultiTaskModel):
        self.model = model
        """Its names, shapes and dtypes mean something; its values don't, once it is emptied."""

    @property
    def architecture(self) -> str:
        """The name of the encoder's class."""
        return type(self.model.encoder).__name__

    def pack(self, scope: str, names: Iterable[str]) -> Component:
        """Copy the values of some tensors into a new component, as long as the skeleton has them."""
        values = self.model.exchanged()
        return Component.pack(scope, {name: values[name].detach() for name in names})

    def empty(self) -> None:
        """Leave the tensors their shapes and dtypes, without the memory for their values."""
        for tensor in self.model.exchanged().values():
            tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

    def filled(self, views: Mapping[str, Tensor]) -> MultiTaskModel:
        """A copy of the modules whose parameters and buffers are the given tensors, and not copies of these.

        Args:
            views: by name, of the same shapes and dtypes. What isn't given stays empty.
        """
        empty = self.model.exchanged()
        lent: dict[int, object] = {
            id(empty[name]): nn.Parameter(view, requires_grad=empty[name].requires_grad)
            if isinstance(empty[name], nn.Parameter)
            else view
            for name, view in views.items()
        }
        return copy.deepcopy(self.model, lent)
