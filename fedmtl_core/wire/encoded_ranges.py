"""Decodes a range of an encoded component without decoding the rest.

The values are bit for bit those of `fedmtl_core.wire.encodings.decode`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.layout import TensorSpec

ReadBytes = Callable[[int, int], Tensor]
"""Returns the encoded bytes from one offset to another, uint8, in memory that is aligned for every dtype."""

_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def decode_range(part: EncodedLayout, read: ReadBytes, run: int, start: int, stop: int) -> Tensor:
    """Decode a range of an encoded component. Memory use depends on the range, not on the size of the component.

    Args:
        part: the component's layout and encoding.
        read: returns the encoded bytes, which `fedmtl_core.wire.encodings.require_valid` accepts.
        run: the index of the flat vector in the component's layout (`Layout.runs`).
        start: the first element to decode, in the flat vector.
        stop: the element after the last element to decode.

    Returns:
        `(stop - start,)`, in the run's dtype. It may share memory with the result of `read`.
    """
    runs = part.layout.runs
    dtype = runs[run].dtype
    if start == stop:
        return torch.empty(0, dtype=dtype)
    if part.encoding == "float32":
        first = runs[run].start
        return read(first + start * dtype.itemsize, first + stop * dtype.itemsize).view(dtype)
    before = sum((one.end - one.start) // one.dtype.itemsize for one in runs[:run])
    start, stop = before + start, before + stop
    if part.encoding == "int8":
        values = _int8(part.layout.tensors, read, start, stop)
    elif part.encoding == "topk":
        values = _topk(part.num_bytes // 8, read, start, stop)
    else:
        values = read(2 * start, 2 * stop).view(_HALVES[part.encoding])
    return _saturated(values, dtype)


def _int8(tensors: Sequence[TensorSpec], read: ReadBytes, start: int, stop: int) -> Tensor:
    """Decode elements of an `int8` component, counted over all its tensors, to float32."""
    num_rows = sum(map(_rows_of, tensors))
    values = read(4 * num_rows + start, 4 * num_rows + stop).view(torch.int8).to(torch.float32)
    first_row = first = 0
    for spec in tensors:
        rows, end = _rows_of(spec), first + spec.num_elements
        begins, ends = max(start, first), min(stop, end)
        if begins < ends:
            columns = spec.num_elements // rows
            rows_from, rows_to = (begins - first) // columns, -(-(ends - first) // columns)
            scales = read(4 * (first_row + rows_from), 4 * (first_row + rows_to)).view(torch.float32)
            edges = torch.arange(rows_from, rows_to + 1).mul_(columns).clamp_(begins - first, ends - first)
            values[begins - start : ends - start].mul_(scales.repeat_interleave(edges.diff()))
        first_row, first = first_row + rows, end
    return values


def _topk(count: int, read: ReadBytes, start: int, stop: int) -> Tensor:
    """Decode elements of a `topk` component with `count` kept elements, to float32."""

    def index(place: int) -> int:
        return int(read(4 * place, 4 * place + 4).numpy().view(np.uint32)[0])

    begins = bisect_left(range(count), start, key=index)
    ends = bisect_left(range(count), stop, lo=begins, key=index)
    values = torch.zeros(stop - start)
    if begins < ends:
        indices = read(4 * begins, 4 * ends).numpy().view(np.uint32)
        kept = read(4 * (count + begins), 4 * (count + ends)).view(torch.float32)
        values[torch.from_numpy(indices - np.int64(start))] = kept
    return values


def _rows_of(spec: TensorSpec) -> int:
    """Return the number of a tensor's rows, each of which has a scale; see `fedmtl_core.wire.lossy.int8`."""
    return spec.num_elements // (spec.shape[-1] if spec.shape else 1) if spec.num_elements else 0


def _saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert finite numbers to another dtype: round to nearest, ties to even, and saturate at its largest number."""
    most = torch.finfo(dtype).max
    converted = values.to(dtype)
    return converted.clamp_(-most, most) if most < torch.finfo(values.dtype).max else converted
