"""`topk`: k uint32 indices, strictly ascending, then k float32 values; all other elements are 0.

The elements of largest magnitude are kept (Aji & Heafield 2017, arXiv:1704.05021), at most (N + 1) // 2. An encoded
form is therefore at most 4 bytes larger than the layout's float32 tensors. Kept elements are exact, and no other
element has a larger magnitude than a kept element.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl_core.errors import LimitExceededError, MalformedStreamError, NonFiniteError
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_core.wire.lossy import blocks

_MAX_ELEMENTS = 2**32 - 1
_SAMPLING = 61  # a prime, so that the sample covers all columns


def most_bytes(layout: Layout) -> int:
    """Return the maximum size of an encoded component in bytes; every smaller multiple of 8 is allowed too."""
    return 8 * _most_kept(layout.num_elements)


def require_countable(layout: Layout) -> None:
    """Check that a layout's elements can be indexed with 32 bits.

    Raises:
        LimitExceededError: the layout has too many elements.
    """
    total = layout.num_elements
    if total > _MAX_ELEMENTS:
        raise LimitExceededError(
            f"{layout.scope}: topk: {total} elements, at most {_MAX_ELEMENTS} can be told apart by their indices"
        )


def encode(component: Component, density: float) -> Tensor:
    """Encode a share of a component's finite numbers: uint8 `(8 * k,)`."""
    total = component.layout.num_elements
    count = min(max(1, round(density * total)), _most_kept(total))
    data = torch.empty(8 * count, dtype=torch.uint8)
    if count == 0:
        return data
    threshold, ties = _threshold(component, count)
    indices, values = _sections(data)
    kept = 0
    for start, block in blocks.blocks_of(component):
        magnitudes = block.abs().numpy()
        chosen = magnitudes > threshold
        if ties:
            tied = np.flatnonzero(magnitudes == threshold)[:ties]
            chosen[tied] = True
            ties -= len(tied)
        places = np.flatnonzero(chosen)
        indices[kept : kept + len(places)] = places + start
        values[kept : kept + len(places)] = block.numpy()[places]
        kept += len(places)
    return data


def _threshold(component: Component, count: int) -> tuple[float, int]:
    """Return the `count`th largest magnitude, and how many elements of exactly this magnitude are among the largest.

    Selection is slow, so it runs on few elements: a sample gives a magnitude that slightly more than `count` exceed.
    """
    total = component.layout.num_elements
    if total > blocks.BLOCK:
        sample = np.concatenate([magnitudes[::_SAMPLING] for _, magnitudes in _magnitudes(component)])
        rank = len(sample) * count * 11 // (10 * total) + 32  # a tenth more and a constant, for unlucky samples
        if rank <= len(sample):
            floor = _largest(sample, rank)[0]
            larger, as_large = [], 0
            for _, magnitudes in _magnitudes(component):
                larger.append(magnitudes[magnitudes > floor])
                as_large += int(np.count_nonzero(magnitudes == floor))
            num_larger = sum(map(len, larger))
            if num_larger < count <= num_larger + as_large:  # such as 0, if most elements are 0
                return float(floor), count - num_larger
            if num_larger >= count:
                return _least_and_ties(_largest(np.concatenate(larger), count))
    everything = np.empty(total, np.float32)
    for start, magnitudes in _magnitudes(component):
        everything[start : start + len(magnitudes)] = magnitudes
    return _least_and_ties(_largest(everything, count))


def _largest(magnitudes: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the `count` largest numbers, the smallest of them first. This reorders the array."""
    magnitudes.partition(len(magnitudes) - count)
    return magnitudes[len(magnitudes) - count :]


def _least_and_ties(largest: NDArray[np.float32]) -> tuple[float, int]:
    return float(largest[0]), int(np.count_nonzero(largest == largest[0]))


def _magnitudes(component: Component) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start, block in blocks.blocks_of(component):
        yield start, block.abs().numpy()


def require_valid(layout: Layout, data: Tensor) -> None:
    """Check an encoded component.

    Raises:
        NonFiniteError: a value is NaN or infinite.
        MalformedStreamError: indices don't ascend, or run past the last element.
    """
    indices, values = _sections(data)
    if len(indices) == 0:
        return
    bad = 0 if blocks.is_finite(torch.from_numpy(values)) else blocks.count_non_finite(torch.from_numpy(values))
    if bad:
        raise NonFiniteError(f"{layout.scope}: topk: {bad} of {len(values)} values are NaN or infinite")
    falls = np.flatnonzero(indices[1:] <= indices[:-1])
    if len(falls):
        first = int(falls[0])
        raise MalformedStreamError(
            f"{layout.scope}: topk: expected ascending indices, got {indices[first + 1]} after {indices[first]}"
        )
    if int(indices[-1]) >= layout.num_elements:
        raise MalformedStreamError(
            f"{layout.scope}: topk: expected indices below {layout.num_elements}, got {indices[-1]}"
        )


def largest_magnitude(data: Tensor) -> float:
    """Return the largest magnitude of at least one value."""
    return float(np.abs(_sections(data)[1]).max())


def decode(component: Component, data: Tensor) -> None:
    """Overwrite a component's numbers and the padding between its tensors."""
    indices, values = _sections(data)
    component.buffer.zero_()
    start = 0
    for run in component.runs():
        first, end = (int(place) for place in np.searchsorted(indices, [start, start + len(run)]))
        for begin in range(first, end, blocks.BLOCK):
            part = slice(begin, min(begin + blocks.BLOCK, end))
            numbers = torch.empty(part.stop - begin, dtype=run.dtype)
            blocks.store(numbers, torch.from_numpy(values[part]))
            run.index_copy_(0, torch.from_numpy(indices[part] - np.int64(start)), numbers)
        start += len(run)


def _sections(data: Tensor) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return indices and values as NumPy views, because PyTorch hardly supports uint32."""
    middle = len(data) // 2
    return data[:middle].numpy().view(np.uint32), data[middle:].numpy().view(np.float32)


def _most_kept(total: int) -> int:
    return (total + 1) // 2
