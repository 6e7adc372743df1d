"""`int8`: R float32 scales, one for each row, then N signed bytes from -127 to 127.

The value of an element is its byte times its row's scale. A row is the last dimension of a tensor. A tensor of shape
`(..., c)` has `prod(shape[:-1])` rows of c elements, a scalar has one row of one element, and a tensor without elements
has no rows. This is the symmetric quantization with a scale for each row of Krishnamoorthi 2018 (arXiv:1806.08342).

Let x be an element as a float32, x' the float32 that it decodes to, and m the largest magnitude in its row. Then
|x - x'| <= m / 254 * (1 + 2^-15) + 2^-119. With a scale of m / 127, half a step is m / 254. Rounding to float32 adds,
in half steps, at most 2^-23 for the scale, 2^-17 for x / scale (which is below 128) and 2^-16 for the product (at most
127 steps). The last term is for rows that are written as zeros because their scale would be denormal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fedmtl_core.errors import MalformedStreamError, NonFiniteError
from fedmtl_core.wire.layout import Component, Layout, TensorSpec
from fedmtl_core.wire.lossy import blocks

MAX_SCALE = 8454659 * 2.0**98
"""The largest scale of a row, near the largest float32 / 127: 127 times the next float32 rounds to infinity."""

_MIN_SCALE = torch.finfo(torch.float32).smallest_normal  # 2^-126


def num_bytes(layout: Layout) -> int:
    """Return the size of an encoded component in bytes."""
    return 4 * _num_rows(layout) + layout.num_elements


def encode(component: Component) -> Tensor:
    """Encode a component's finite numbers: uint8 `(num_bytes,)`."""
    data = torch.empty(num_bytes(component.layout), dtype=torch.uint8)
    for matrix, scales, quotients in _rows(component, data):
        maxima = torch.zeros_like(scales)
        for block in blocks.pieces(matrix, blocks.BLOCK, dim=1):  # a single block, unless a row is very long
            torch.maximum(maxima, blocks.as_float32(block).abs().amax(1, keepdim=True), out=maxima)
        torch.div(maxima, 127, out=scales).clamp_(max=MAX_SCALE)
        scales.masked_fill_(scales < _MIN_SCALE, 0)
        divisors = torch.where(scales > 0, scales, math.inf)
        columns = (blocks.pieces(one, blocks.BLOCK, dim=1) for one in (matrix, quotients))
        for block, rounded in zip(*columns, strict=True):
            rounded.copy_(torch.div(blocks.as_float32(block), divisors).round_())  # at most 127 × (1 + 2^-22): no clamp
    return data


def require_valid(layout: Layout, data: Tensor) -> None:
    """Check an encoded component.

    Raises:
        NonFiniteError: a scale is NaN, infinite or above `MAX_SCALE`.
        MalformedStreamError: a scale is negative, or a byte is -128.
    """
    scales, quotients = _sections(layout, data)
    if len(quotients) == 0:
        return
    least, most = (bound.item() for bound in scales.aminmax())
    if not (least >= 0 and most <= MAX_SCALE):  # NaN fails this check too
        unfit = int((~(scales.abs() <= MAX_SCALE)).sum())
        if unfit:
            raise NonFiniteError(
                f"{layout.scope}: int8: {unfit} of {len(scales)} scales are NaN, infinite or above {MAX_SCALE:.4g}"
            )
        negative = int((scales < 0).sum())
        raise MalformedStreamError(f"{layout.scope}: int8: {negative} of {len(scales)} scales are negative")
    if quotients.amin().item() == -128:
        raise MalformedStreamError(f"{layout.scope}: int8: expected bytes from -127 to 127, got -128")


def largest_magnitude(layout: Layout, data: Tensor) -> float:
    """Return an upper bound of the elements' magnitudes, from the largest scale. The layout has at least one row."""
    return 127 * float(_sections(layout, data)[0].max())


def decode(component: Component, data: Tensor) -> None:
    """Overwrite a component's numbers, but not the padding between its tensors."""
    for matrix, scales, quotients in _rows(component, data):
        columns = (blocks.pieces(one, blocks.BLOCK, dim=1) for one in (matrix, quotients))
        for target, quotient in zip(*columns, strict=True):
            if target.dtype == torch.float32:
                target.copy_(quotient).mul_(scales)
            else:
                blocks.store(target, quotient.to(torch.float32).mul_(scales))


def _rows(component: Component, data: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield a component's rows with their scales and bytes in the encoded form, as views.

    Yields:
        Some rows of a tensor, `(rows, c)`, their scales, float32 `(rows, 1)`, and their bytes, int8 `(rows, c)`. A view
        has about `blocks.BLOCK` elements, or a single row if the row has more.
    """
    scales, quotients = _sections(component.layout, data)
    first_row = start = 0
    views = component.views()
    for spec in component.layout.tensors:
        rows, total = _rows_of(spec), spec.num_elements
        if rows == 0:
            continue
        columns = total // rows
        at_a_time = max(1, blocks.BLOCK // columns)
        yield from zip(
            blocks.pieces(views[spec.name].view(rows, columns), at_a_time),
            blocks.pieces(scales[first_row : first_row + rows].view(rows, 1), at_a_time),
            blocks.pieces(quotients[start : start + total].view(rows, columns), at_a_time),
            strict=True,
        )
        first_row, start = first_row + rows, start + total


def _sections(layout: Layout, data: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales and the bytes as views."""
    end = 4 * _num_rows(layout)
    return blocks.typed(data[:end], torch.float32), blocks.typed(data[end:], torch.int8)


def _num_rows(layout: Layout) -> int:
    return sum(map(_rows_of, layout.tensors))


def _rows_of(spec: TensorSpec) -> int:
    return math.prod(spec.shape[:-1]) if spec.num_elements else 0
