"""The PyTorch modules of a multi-task model without memory for their values, which are stored in components."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.model.scopes import FROZEN
from fedmtl_core.runtime.allocator import give_back_pages
from fedmtl_core.wire.layout import Component, Layout

_PIECE_BYTES = 4 * 2**20
"""The largest part of a tensor that is in memory twice while the tensor moves."""
_SMALLEST_MOVED = 2**18
"""Tensors of fewer bytes are copied as a whole."""


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

    def take_base(self) -> Component:
        """Move the values of the base into a new component. This must happen before `empty`, and after `pack`.

        The base may be most of the process's memory, so it is never there twice: the memory of its tensors is returned
        to the system piece by piece.
        """
        tensors = {name: tensor.detach() for name, tensor in self.model.base().items()}
        layout = Layout.of(FROZEN, tensors)
        component = Component(layout, torch.empty(layout.num_bytes, dtype=torch.uint8))  # takes no memory yet
        alone = _without_overlap(self._tensors())
        for name, view in component.views().items():
            if name in alone and view.nbytes >= _SMALLEST_MOVED:
                _move(tensors[name], view)
            else:
                view.copy_(tensors[name])
        component.clear_padding()
        return component

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
        return self.model.exchanged() | self.model.base()


def _move(source: Tensor, target: Tensor) -> None:
    """Copy the values of a contiguous tensor into another, and return the first one's memory to the system."""
    old, new, step = source.view(-1), target.view(-1), _PIECE_BYTES // source.itemsize
    for start in range(0, len(old), step):
        piece = old[start : start + step]
        new[start : start + step] = piece
        give_back_pages(piece.data_ptr(), piece.nbytes)


def _without_overlap(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the contiguous tensors whose memory no other of these tensors uses."""
    extents = {name: (one.data_ptr(), one.data_ptr() + _extent(one)) for name, one in tensors.items()}
    in_order = sorted(extents, key=lambda name: extents[name])
    overlapping, end, last = set(), 0, ""
    for name in in_order:
        if extents[name][0] < end:
            overlapping |= {name, last}
        if extents[name][1] > end:
            end, last = extents[name][1], name
    return {name for name, one in tensors.items() if one.is_contiguous()} - overlapping


def _extent(tensor: Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last one."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize
