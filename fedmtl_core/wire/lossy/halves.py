"""`float16` and `bfloat16`: N numbers of two bytes.

Each number is rounded to nearest, ties to even, and saturates at the largest finite number (65504 and about 3.39e38).
Denormals and -0.0 are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmtl_core.errors import NonFiniteError
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_core.wire.lossy import blocks


def encode(component: Component, dtype: torch.dtype) -> Tensor:
    """Encode a component's finite numbers in a dtype of two bytes: uint8 `(2 * N,)`."""
    encoded = torch.empty(component.layout.num_elements, dtype=dtype)
    for start, block in blocks.blocks_of(component):
        blocks.store(encoded[start : start + len(block)], block)
    return encoded.view(torch.uint8)


def require_valid(layout: Layout, values: Tensor) -> None:
    """Check the numbers of a layout, `(N,)`.

    Raises:
        NonFiniteError: a number is NaN or infinite.
    """
    if all(blocks.is_finite(block) for block in blocks.pieces(values, blocks.BLOCK)):
        return
    start = 0
    for spec in layout.tensors:
        bad = blocks.count_non_finite(values[start : start + spec.num_elements])
        if bad:
            raise NonFiniteError(f"{layout.scope}: {spec.name} has {bad} of {spec.num_elements} values NaN or infinite")
        start += spec.num_elements


def largest_magnitude(values: Tensor) -> float:
    """Return an upper bound of the magnitudes of `(N,)` finite numbers: the dtype's largest number if that is near."""
    if values.dtype == torch.float16:
        return torch.finfo(torch.float16).max
    return max(float(block.abs().max()) for block in blocks.pieces(values, blocks.BLOCK))


def decode(component: Component, values: Tensor) -> None:
    """Overwrite a component's numbers with `(N,)` decoded numbers."""
    start = 0
    for run in component.runs():
        blocks.store(run, values[start : start + len(run)])
        start += len(run)
