"""A variant's tensors in place of a model's own, for one evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fedmtl_client.slices import Slice, SliceVariant
from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.identifiers import quoted
from fedmtl_core.model.modeling import MultiTaskModel


def tensors_of(variant: SliceVariant, slice_: Slice) -> dict[str, Tensor]:
    """Return a variant's tensors by name, as views.

    Raises:
        LayoutMismatchError: a tensor isn't in the slice, has another shape or dtype there, or occurs twice.
    """
    expected = {spec.name: str(spec) for one in slice_.components.values() for spec in one.layout.tensors}
    tensors: dict[str, Tensor] = {}
    for component in variant.components.values():
        for spec in component.layout.tensors:
            if expected.get(spec.name) != str(spec) or spec.name in tensors:
                raise LayoutMismatchError(
                    f"the variant {quoted(variant.name)} doesn't fit the slice: expected tensors of the slice, each "
                    f"once, got {quoted(spec.name)} {spec}"
                )
        tensors |= component.views()
    return tensors


@contextmanager
def overlaid(model: MultiTaskModel, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context, let a model use other tensors in place of some of its own.

    The model's own memory isn't written to. Its buffers, which an evaluation might change, are restored as well.

    Args:
        model: the model, on any device.
        tensors: by name, tensors on CPU with the shapes and dtypes of the model's.
    """
    own = model.exchanged()
    aside = {name: own[name].data for name in tensors}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        for name, tensor in tensors.items():
            own[name].data = tensor.to(own[name].device)
        yield
    finally:
        for name, data in aside.items():
            own[name].data = data
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                setattr(module, name, buffer)  # a module may give a buffer new memory
                buffer.copy_(value)
