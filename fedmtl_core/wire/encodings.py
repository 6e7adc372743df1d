"""Encodes components to the bytes that travel, and decodes them.

The encoded bytes are little-endian and have no header. For a layout of N elements the encodings are:

* `float32`: the component's own bytes in its layout, padding included. It is exact for all dtypes, and is named after
  the most common one.
* `float16`, `bfloat16`, `int8`, `topk`: see `lossy/halves.py`, `lossy/int8.py` and `lossy/topk.py`, which also give the
  error of each encoding.

Elements are counted over the tensors in the layout's order, without the padding between tensors. Both sections of an
encoding with two sections are aligned if the whole is aligned to 4 bytes.

All encodings except `float32` convert each element to float32 first. A float64 is rounded to nearest, ties to even, and
saturates at the largest finite float32. They decode to float32 numbers, which are then widened or rounded to the
tensor's own dtype and saturate at its largest finite number. Finite numbers therefore stay finite in both directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.wire.formats import DEFAULT_DENSITY, Encoding
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_core.wire.lossy import blocks, halves, int8, topk

_HALVES: dict[Encoding, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def require_encoded_size(layout: Layout, encoding: Encoding, num_bytes: int) -> None:
    """Check that an encoded component can have `num_bytes` bytes, without allocating memory.

    Raises:
        LayoutMismatchError: it can't.
    """
    total = layout.num_elements
    if encoding == "topk":
        most = topk.most_bytes(layout)
        if num_bytes % 8 == 0 and 0 <= num_bytes <= most:
            return
        expected = f"a multiple of 8 up to {most}"
    else:
        exact = {
            "float32": layout.num_bytes,
            "float16": 2 * total,
            "bfloat16": 2 * total,
            "int8": int8.num_bytes(layout),
        }[encoding]
        if num_bytes == exact:
            return
        expected = str(exact)
    raise LayoutMismatchError(
        f"{layout.scope}: {encoding}: expected {expected} bytes, got {num_bytes}", expected=expected, got=num_bytes
    )


def encode(component: Component, encoding: Encoding, density: float = DEFAULT_DENSITY) -> Tensor:
    """Encode a component's numbers. The component is not changed.

    The same numbers give the same bytes. Temporary memory is a few MiB. `topk` also needs about 10 bytes for each kept
    element, or 4 bytes for each element if its sample was misleading.

    Args:
        density: the share of the elements that `topk` keeps: `max(1, round(density * N))` elements, and at most
            (N + 1) // 2. Of equal magnitudes the first are kept.

    Returns:
        uint8 `(encoded bytes,)` on CPU. With `float32` it is the component's own buffer, not a copy.

    Raises:
        NonFiniteError: a value is NaN or infinite. `float32` is not checked.
        LimitExceededError: the component has too many elements for the indices of `topk`.
    """
    if encoding == "float32":
        return component.buffer
    if encoding == "topk":
        topk.require_countable(component.layout)
    blocks.require_finite(component)
    if encoding == "int8":
        return int8.encode(component)
    if encoding == "topk":
        return topk.encode(component, density)
    return halves.encode(component, _HALVES[encoding])


def require_valid(layout: Layout, encoding: Encoding, data: Tensor) -> None:
    """Check in one pass, at memory bandwidth, that encoded bytes can be decoded.

    Args:
        data: uint8 `(encoded bytes,)`, contiguous, of a size that `require_encoded_size` accepts. It is aligned to 4
            bytes; with `float32`, to the size of the widest dtype.

    Raises:
        NonFiniteError: a number is NaN or infinite, or a scale of `int8` is too large.
        MalformedStreamError: a scale is negative, a byte of `int8` is -128, or indices don't ascend or run past the
            last element.
    """
    if encoding == "float32":
        blocks.require_finite(Component(layout, data))
    elif encoding == "int8":
        int8.require_valid(layout, data)
    elif encoding == "topk":
        topk.require_valid(layout, data)
    else:
        halves.require_valid(layout, blocks.typed(data, _HALVES[encoding]))


def largest_magnitude(layout: Layout, encoding: Encoding, data: Tensor) -> float:
    """Return an upper bound of the elements' magnitudes, without decoding them.

    Args:
        data: encoded bytes, with the conditions of `decode`.
    """
    if not layout.num_elements or not len(data):
        return 0.0
    if encoding == "float32":
        return max(float(run.abs().max()) for run in Component(layout, data).runs())
    if encoding == "int8":
        return int8.largest_magnitude(layout, data)
    if encoding == "topk":
        return topk.largest_magnitude(data)
    return halves.largest_magnitude(blocks.typed(data, _HALVES[encoding]))


def decode(layout: Layout, encoding: Encoding, data: Tensor, into: Component | None = None) -> Component:
    """Decode a component's numbers.

    Args:
        data: uint8 `(encoded bytes,)`, contiguous and aligned, that `require_encoded_size` and `require_valid` accept.
        into: the component to overwrite, of the same layout; a new component if None.

    Returns:
        `into`, or the new component. With `float32` the new component's buffer is `data` itself, not a copy.

    Raises:
        LayoutMismatchError: `into` has another layout.
    """
    if into is not None:
        layout.require_same(into.layout)
    if encoding == "float32":
        if into is None:
            return Component(layout, data)
        into.buffer.copy_(data)
        return into
    component = into
    if component is None:
        component = Component(layout, torch.empty(layout.num_bytes, dtype=torch.uint8))
    if encoding == "int8":
        int8.decode(component, data)
    elif encoding == "topk":
        topk.decode(component, data)
    else:
        halves.decode(component, blocks.typed(data, _HALVES[encoding]))
    blocks.clear_padding(component)
    return component
