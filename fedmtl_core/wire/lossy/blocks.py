"""Shared code of the lossy encodings: a component's numbers block by block, and conversion between dtypes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component

BLOCK = 2**20
"""The number of elements processed at a time; temporary memory is a few MiB and stays in the cache."""


def blocks_of(component: Component) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of a component's elements as float32 `(n,)`, with the first index. Blocks of float32 are views."""
    start = 0
    for run in component.runs():
        for block in pieces(run, BLOCK):
            yield start, as_float32(block)
            start += len(block)


def pieces(values: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    """Return views of `size` elements of a dimension; the last can be shorter, and an empty tensor has no views."""
    length = values.shape[dim]
    return [values.narrow(dim, start, min(size, length - start)) for start in range(0, length, size)]


def typed(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Return bytes as numbers. This works for zero bytes with any stride, which PyTorch rejects."""
    return data.view(dtype) if len(data) else torch.empty(0, dtype=dtype)


def as_float32(values: Tensor) -> Tensor:
    """Return finite numbers as float32, without a copy of float32; float64 saturates at the largest finite float32."""
    if values.dtype == torch.float64:
        most = torch.finfo(torch.float32).max
        values = values.clamp(-most, most)
    return values.to(torch.float32)


def store(target: Tensor, values: Tensor) -> None:
    """Copy finite numbers to another dtype: round to nearest, ties to even, and saturate at its largest number."""
    target.copy_(values)
    most = torch.finfo(target.dtype).max
    if most < torch.finfo(values.dtype).max:
        target.clamp_(-most, most)


def clear_padding(component: Component) -> None:
    """Set the bytes between tensors to 0, so that the component has the same digest on both sides."""
    end = 0
    for spec in component.layout.tensors:
        if spec.offset > end:
            component.buffer[end : spec.offset] = 0
        end = spec.end


def require_finite(component: Component) -> None:
    """Check that a component's numbers are finite.

    Raises:
        NonFiniteError: a number is NaN or infinite; the message names its tensor.
    """
    if not all(is_finite(block) for run in component.runs() for block in pieces(run, BLOCK)):
        component.require_finite()  # checks each tensor, and names it


def is_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite. Single numbers are checked only if their sum isn't finite."""
    total = values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    return math.isfinite(total.item()) or bool(torch.isfinite(values).all())


def count_non_finite(values: Tensor) -> int:
    """Return how many of the numbers `(n,)` are NaN or infinite."""
    return sum(int((~torch.isfinite(block)).sum()) for block in pieces(values, BLOCK))
