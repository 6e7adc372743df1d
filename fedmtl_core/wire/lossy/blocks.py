"""What the encodings have in common: a component's numbers block by block, and numbers of another dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component

BLOCK = 2**20
"""Elements worked on at a time: what is made on the way is a few MiB and stays in the cache."""


def blocks_of(component: Component) -> Iterator[tuple[int, Tensor]]:
    """The component's elements as float32 `(n,)`, with the number of the first; views where they are float32."""
    start = 0
    for run in component.runs():
        for block in pieces(run, BLOCK):
            yield start, as_float32(block)
            start += len(block)


def pieces(values: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    """Views of `size` elements of a dimension each; the last may be shorter, and an empty tensor has none."""
    length = values.shape[dim]
    return [values.narrow(dim, start, min(size, length - start)) for start in range(0, length, size)]


def typed(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers; where there are none, whatever the stride, which PyTorch would mind."""
    return data.view(dtype) if len(data) else torch.empty(0, dtype=dtype)


def as_float32(values: Tensor) -> Tensor:
    """Finite numbers as float32, not copied if they are; a float64 saturates at the largest finite float32."""
    if values.dtype == torch.float64:
        most = torch.finfo(torch.float32).max
        values = values.clamp(-most, most)
    return values.to(torch.float32)


def store(target: Tensor, values: Tensor) -> None:
    """Copy finite numbers to another dtype: rounded to nearest, ties to even, and saturated at its largest."""
    target.copy_(values)
    most = torch.finfo(target.dtype).max
    if most < torch.finfo(values.dtype).max:
        target.clamp_(-most, most)


def clear_padding(component: Component) -> None:
    """Zero the bytes between tensors, so that the whole has the digest that it has at the other end."""
    end = 0
    for spec in component.layout.tensors:
        if spec.offset > end:
            component.buffer[end : spec.offset] = 0
        end = spec.end


def require_finite(component: Component) -> None:
    """Check that a component's numbers are finite.

    Raises:
        NonFiniteError: one is NaN or infinite; the message names its tensor.
    """
    if not all(is_finite(block) for run in component.runs() for block in pieces(run, BLOCK)):
        component.require_finite()  # looks closer, and names the tensor


def is_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite. It takes their sum, and looks closer only if that isn't finite."""
    total = values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    return math.isfinite(total.item()) or bool(torch.isfinite(values).all())


def count_non_finite(values: Tensor) -> int:
    """How many of the numbers, `(n,)`, are NaN or infinite."""
    return sum(int((~torch.isfinite(block)).sum()) for block in pieces(values, BLOCK))
