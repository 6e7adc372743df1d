"""Components as they are computed with: in float32, or float64 where their tensors are."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component


class WideComponent:
    """A component whose numbers are written in the dtype that is computed in.

    Args:
        component: in whose memory it is, as far as that has the same dtype; its bytes may hold anything.
    """

    def __init__(self, component: Component):
        self._component = component
        self.runs = [
            run if run.dtype == wide(run.dtype) else torch.empty(run.shape, dtype=wide(run.dtype))
            for run in component.runs()
        ]
        """The flat vectors of the component's runs; what is written to them is the result."""

    @property
    def buffer(self) -> Tensor:
        """The component's bytes."""
        return self._component.buffer

    def narrowed(self) -> Component:
        """The component, in its layout's own dtypes, its padding 0."""
        for target, values in zip(self._component.runs(), self.runs, strict=True):
            if target.dtype != values.dtype:
                target.copy_(values)
        self._component.clear_padding()  # what a client sent there is of no meaning
        return self._component


def wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed in, for tensors of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def counted_values(sent: Tensor, origin: Tensor | None, scale: float, is_delta: bool) -> Tensor:
    """What an update counts as, as parameters.

    Args:
        sent: `(n,)`, parameters or a delta.
        origin: `(n,)`, the model's values; None if `sent` are parameters that count as they are.
        scale: what their difference from the model is multiplied with.
        is_delta: whether `sent` is that difference.

    Returns:
        `(n,)`, in the dtype that is computed in.
    """
    value = sent.to(wide(sent.dtype))
    if origin is None:
        return value
    start_value = origin.to(value.dtype)
    if is_delta:
        return torch.add(start_value, value, alpha=scale)
    # Both are scaled before they are subtracted, so that nothing overflows.
    return torch.mul(value, scale).sub_(start_value, alpha=scale).add_(start_value)
