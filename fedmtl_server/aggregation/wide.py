"""Components in the dtype of computation: float32, or float64 for float64 tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component


class WideComponent:
    """A component whose values are written in the dtype of computation.

    Args:
        component: provides the memory for tensors that already have that dtype; its bytes are arbitrary.
    """

    def __init__(self, component: Component):
        self._component = component
        self.runs = [
            run if run.dtype == wide(run.dtype) else torch.empty(run.shape, dtype=wide(run.dtype))
            for run in component.runs()
        ]
        """The flat vectors of the component's runs; the values written to them are the result."""

    @property
    def buffer(self) -> Tensor:
        """The component's bytes."""
        return self._component.buffer

    def narrowed(self) -> Component:
        """Return the component in its layout's own dtypes, with its padding set to 0."""
        for target, values in zip(self._component.runs(), self.runs, strict=True):
            if target.dtype != values.dtype:
                target.copy_(values)
        self._component.clear_padding()  # clients may send arbitrary bytes there
        return self._component


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of computation for tensors of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def counted_values(sent: Tensor, origin: Tensor | None, scale: float, is_delta: bool) -> Tensor:
    """Return an update's values as parameters, with its difference from the model scaled.

    Args:
        sent: `(n,)`, parameters or a delta.
        origin: `(n,)`, the model's values; None if `sent` are parameters that are used unchanged.
        scale: the factor on the difference from the model.
        is_delta: whether `sent` is that difference.

    Returns:
        `(n,)`, in the dtype of computation.
    """
    value = sent.to(wide(sent.dtype))
    if origin is None:
        return value
    start_value = origin.to(value.dtype)
    if is_delta:
        return torch.add(start_value, value, alpha=scale)
    # Both operands are scaled before the subtraction, so that nothing overflows.
    return torch.mul(value, scale).sub_(start_value, alpha=scale).add_(start_value)
