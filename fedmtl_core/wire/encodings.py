"""How a component's numbers are written on the wire: components to encoded bytes and back.

The encoded bytes are little-endian and have no header. For a layout of N elements they are

* `float32`: the component's own bytes as its layout has them, padding included. Exact, whatever the tensors' dtypes;
  only the name is that of the usual one.
* `float16`, `bfloat16`: N numbers of two bytes. Each is rounded to nearest, ties to even, and saturates at the largest
  finite one (65504 and about 3.39e38). Denormals and -0.0 are kept.
* `int8`: R float32 scales, one for each row, then N signed bytes from -127 to 127, each of which stands for itself
  times its row's scale. A row is the last dimension of a tensor: one of shape `(..., c)` has `prod(shape[:-1])` rows
  of c elements, a scalar has one row of one, a tensor without elements has none. Symmetric quantisation with a scale
  for each row is that of Krishnamoorthi 2018 (arXiv:1806.08342).
* `topk`: k uint32 indices, strictly ascending, then k float32 values; all other elements are 0. Those of largest
  magnitude are kept (Aji & Heafield 2017, arXiv:1704.05021), at most (N + 1) // 2, so that no layout has an encoded
  form that is larger than its float32 tensors by more than 4 bytes.

Elements are counted over the tensors in the layout's order, without the padding between them. Where sections follow
one another, both begin aligned if the whole is aligned to 4 bytes.

All but `float32` take each element as a float32 (a float64 is rounded to nearest, ties to even, and saturates at the
largest finite float32), and decode to float32 numbers, which are then widened or rounded to the tensor's own dtype and
saturate at its largest finite number. So what was finite stays finite both ways.

What the last two lose, where x is an element as a float32, x' the float32 it decodes to, and m the largest magnitude in
its row:

* `int8`: |x - x'| <= m / 254 * (1 + 2^-15) + 2^-119. With a scale of m / 127, half a step is m / 254. Rounding to
  float32 adds to that, in half steps, at most 2^-23 by the scale, 2^-17 by x / scale (it is below 128) and 2^-16 by
  the product (at most 127 steps). The last term is for rows written as zeros because their scale would be denormal.
* `topk`: kept elements are exact, and no other one is larger in magnitude than a kept one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl_core.errors import LayoutMismatchError, LimitExceededError, MalformedStreamError, NonFiniteError
from fedmtl_core.wire.formats import DEFAULT_DENSITY, Encoding
from fedmtl_core.wire.layout import Component, Layout, TensorSpec

MAX_SCALE = 8454659 * 2.0**98
"""Largest scale of an `int8` row: 127 times the next float32 rounds to infinity. Near the largest float32 / 127."""

_MIN_SCALE = torch.finfo(torch.float32).smallest_normal  # 2^-126
_MAX_ELEMENTS = 2**32 - 1
_BLOCK = 2**20  # elements worked on at a time: what is made on the way is a few MiB and stays in the cache
_SAMPLING = 61  # a prime, so that the sample doesn't come from a few columns only
_HALVES: dict[Encoding, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def require_encoded_size(layout: Layout, encoding: Encoding, num_bytes: int) -> None:
    """Check that so many bytes can be an encoded component. Takes no memory.

    Raises:
        LayoutMismatchError: they can't.
    """
    total = layout.num_elements
    if encoding == "topk":
        most = 8 * _most_kept(total)
        if num_bytes % 8 == 0 and 0 <= num_bytes <= most:
            return
        expected = f"a multiple of 8 up to {most}"
    else:
        exact = {
            "float32": layout.num_bytes,
            "float16": 2 * total,
            "bfloat16": 2 * total,
            "int8": 4 * _num_rows(layout) + total,
        }[encoding]
        if num_bytes == exact:
            return
        expected = str(exact)
    raise LayoutMismatchError(
        f"{layout.scope}: {encoding}: expected {expected} bytes, got {num_bytes}", expected=expected, got=num_bytes
    )


def encode(component: Component, encoding: Encoding, density: float = DEFAULT_DENSITY) -> Tensor:
    """Write a component's numbers; it comes back unchanged.

    The same numbers give the same bytes. What is made on the way takes a few MiB, with `topk` some 10 bytes for each
    element kept besides; where a sample misleads it, 4 bytes for each element.

    Args:
        density: share of the elements that `topk` keeps: `max(1, round(density * N))` of them, and never more than
            (N + 1) // 2. Of equal magnitudes the first are kept.

    Returns:
        uint8 `(encoded bytes,)` on CPU. With `float32` it is the component's own buffer, not a copy.

    Raises:
        NonFiniteError: a value is NaN or infinite. Not looked for with `float32`.
        LimitExceededError: `topk` can't count so many elements.
    """
    if encoding == "float32":
        return component.buffer
    total = component.layout.num_elements
    if encoding == "topk" and total > _MAX_ELEMENTS:
        raise LimitExceededError(
            f"{component.scope}: topk: {total} elements, at most {_MAX_ELEMENTS} can be told apart by their indices"
        )
    _require_finite_component(component)
    if encoding == "int8":
        return _encode_int8(component)
    if encoding == "topk":
        return _encode_topk(component, density)
    return _encode_halves(component, _HALVES[encoding])


def require_valid(layout: Layout, encoding: Encoding, data: Tensor) -> None:
    """Check that encoded bytes are numbers that can be decoded: one pass, at memory bandwidth.

    Args:
        data: uint8 `(encoded bytes,)`, contiguous, aligned to 4 bytes (with `float32` to the widest dtype's), of a
            size that `require_encoded_size` takes.

    Raises:
        NonFiniteError: a number is NaN or infinite, or a scale above `MAX_SCALE`.
        MalformedStreamError: a scale is negative, a byte of `int8` is -128, or indices don't ascend or run past the
            last element.
    """
    if encoding == "float32":
        _require_finite_component(Component(layout, data))
    elif encoding == "int8":
        _require_valid_int8(layout, data)
    elif encoding == "topk":
        _require_valid_topk(layout, data)
    else:
        _require_valid_halves(layout, _typed(data, _HALVES[encoding]))


def largest_magnitude(layout: Layout, encoding: Encoding, data: Tensor) -> float:
    """A number that no element's magnitude exceeds, found without decoding them.

    Args:
        data: as for `decode`.
    """
    if not layout.num_elements or not len(data):
        return 0.0
    if encoding == "float32":
        return max(float(run.abs().max()) for run in Component(layout, data).runs())
    if encoding == "int8":
        return 127 * float(_int8_sections(layout, data)[0].max())
    if encoding == "topk":
        return float(np.abs(_topk_sections(data)[1]).max())
    if encoding == "float16":
        return torch.finfo(torch.float16).max
    return max(float(block.abs().max()) for block in _pieces(_typed(data, torch.bfloat16), _BLOCK))


def decode(layout: Layout, encoding: Encoding, data: Tensor, into: Component | None = None) -> Component:
    """Read a component's numbers.

    Args:
        data: uint8 `(encoded bytes,)`, contiguous and aligned, that `require_encoded_size` and `require_valid` take.
        into: where to, of the same layout; all of it is overwritten. A new one is made if None.

    Returns:
        `into`, or the new component. With `float32` the new one's buffer is `data` itself, not a copy.

    Raises:
        LayoutMismatchError: `into` is laid out otherwise.
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
        _decode_int8(component, data)
    elif encoding == "topk":
        _decode_topk(component, data)
    else:
        _decode_halves(component, _typed(data, _HALVES[encoding]))
    _clear_padding(component)
    return component


# float16, bfloat16


def _encode_halves(component: Component, dtype: torch.dtype) -> Tensor:
    encoded = torch.empty(component.layout.num_elements, dtype=dtype)
    for start, block in _blocks(component):
        _store(encoded[start : start + len(block)], block)
    return encoded.view(torch.uint8)


def _require_valid_halves(layout: Layout, values: Tensor) -> None:
    if all(_is_finite(block) for block in _pieces(values, _BLOCK)):
        return
    start = 0
    for spec in layout.tensors:
        bad = _count_non_finite(values[start : start + spec.num_elements])
        if bad:
            raise NonFiniteError(f"{layout.scope}: {spec.name} has {bad} of {spec.num_elements} values NaN or infinite")
        start += spec.num_elements


def _decode_halves(component: Component, values: Tensor) -> None:
    start = 0
    for run in component.runs():
        _store(run, values[start : start + len(run)])
        start += len(run)


# int8


def _encode_int8(component: Component) -> Tensor:
    data = torch.empty(4 * _num_rows(component.layout) + component.layout.num_elements, dtype=torch.uint8)
    for matrix, scales, quotients in _rows(component, data):
        maxima = torch.zeros_like(scales)
        for block in _pieces(matrix, _BLOCK, dim=1):  # a single one, unless a row is very long
            torch.maximum(maxima, _as_float32(block).abs().amax(1, keepdim=True), out=maxima)
        torch.div(maxima, 127, out=scales).clamp_(max=MAX_SCALE)
        scales.masked_fill_(scales < _MIN_SCALE, 0)
        divisors = torch.where(scales > 0, scales, math.inf)
        for block, rounded in zip(_pieces(matrix, _BLOCK, dim=1), _pieces(quotients, _BLOCK, dim=1), strict=True):
            rounded.copy_(torch.div(_as_float32(block), divisors).round_())  # at most 127 × (1 + 2^-22): no clamp
    return data


def _require_valid_int8(layout: Layout, data: Tensor) -> None:
    scales, quotients = _int8_sections(layout, data)
    if len(quotients) == 0:
        return
    least, most = (bound.item() for bound in scales.aminmax())
    if not (least >= 0 and most <= MAX_SCALE):  # nor if they are NaN
        unfit = int((~(scales.abs() <= MAX_SCALE)).sum())
        if unfit:
            raise NonFiniteError(
                f"{layout.scope}: int8: {unfit} of {len(scales)} scales are NaN, infinite or above {MAX_SCALE:.4g}"
            )
        negative = int((scales < 0).sum())
        raise MalformedStreamError(f"{layout.scope}: int8: {negative} of {len(scales)} scales are negative")
    if quotients.amin().item() == -128:
        raise MalformedStreamError(f"{layout.scope}: int8: expected bytes from -127 to 127, got -128")


def _decode_int8(component: Component, data: Tensor) -> None:
    for matrix, scales, quotients in _rows(component, data):
        for target, quotient in zip(_pieces(matrix, _BLOCK, dim=1), _pieces(quotients, _BLOCK, dim=1), strict=True):
            if target.dtype == torch.float32:
                target.copy_(quotient).mul_(scales)
            else:
                _store(target, quotient.to(torch.float32).mul_(scales))


def _rows(component: Component, data: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The component's rows with their places in the encoded bytes, as views.

    Yields:
        Some rows of a tensor, `(rows, c)`, their scales, float32 `(rows, 1)`, and bytes, int8 `(rows, c)`: about
        `_BLOCK` elements, or a single row if one has more.
    """
    scales, quotients = _int8_sections(component.layout, data)
    first_row = start = 0
    views = component.views()
    for spec in component.layout.tensors:
        rows, total = _rows_of(spec), spec.num_elements
        if rows == 0:
            continue
        columns = total // rows
        at_a_time = max(1, _BLOCK // columns)
        yield from zip(
            _pieces(views[spec.name].view(rows, columns), at_a_time),
            _pieces(scales[first_row : first_row + rows].view(rows, 1), at_a_time),
            _pieces(quotients[start : start + total].view(rows, columns), at_a_time),
            strict=True,
        )
        first_row, start = first_row + rows, start + total


def _int8_sections(layout: Layout, data: Tensor) -> tuple[Tensor, Tensor]:
    end = 4 * _num_rows(layout)
    return _typed(data[:end], torch.float32), _typed(data[end:], torch.int8)


def _num_rows(layout: Layout) -> int:
    return sum(map(_rows_of, layout.tensors))


def _rows_of(spec: TensorSpec) -> int:
    return math.prod(spec.shape[:-1]) if spec.num_elements else 0


# topk


def _encode_topk(component: Component, density: float) -> Tensor:
    total = component.layout.num_elements
    count = min(max(1, round(density * total)), _most_kept(total))
    data = torch.empty(8 * count, dtype=torch.uint8)
    if count == 0:
        return data
    threshold, ties = _threshold(component, count)
    indices, values = _topk_sections(data)
    kept = 0
    for start, block in _blocks(component):
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
    """The `count`th largest magnitude, and how many of that very magnitude are among the `count` largest.

    Sorting out is slow, so it is done to few: a sample tells a magnitude that somewhat more than `count` exceed.
    """
    total = component.layout.num_elements
    if total > _BLOCK:
        sample = np.concatenate([magnitudes[::_SAMPLING] for _, magnitudes in _magnitudes(component)])
        rank = len(sample) * count * 11 // (10 * total) + 32  # a tenth more, and some, against bad luck
        if rank <= len(sample):
            floor = _largest(sample, rank)[0]
            larger, as_large = [], 0
            for _, magnitudes in _magnitudes(component):
                larger.append(magnitudes[magnitudes > floor])
                as_large += int(np.count_nonzero(magnitudes == floor))
            num_larger = sum(map(len, larger))
            if num_larger < count <= num_larger + as_large:  # such as 0, where most elements are
                return float(floor), count - num_larger
            if num_larger >= count:
                return _least_and_ties(_largest(np.concatenate(larger), count))
    everything = np.empty(total, np.float32)
    for start, magnitudes in _magnitudes(component):
        everything[start : start + len(magnitudes)] = magnitudes
    return _least_and_ties(_largest(everything, count))


def _largest(magnitudes: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The `count` largest, the least of them first. Their array is put into another order."""
    magnitudes.partition(len(magnitudes) - count)
    return magnitudes[len(magnitudes) - count :]


def _least_and_ties(largest: NDArray[np.float32]) -> tuple[float, int]:
    return float(largest[0]), int(np.count_nonzero(largest == largest[0]))


def _magnitudes(component: Component) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start, block in _blocks(component):
        yield start, block.abs().numpy()


def _require_valid_topk(layout: Layout, data: Tensor) -> None:
    indices, values = _topk_sections(data)
    if len(indices) == 0:
        return
    bad = 0 if _is_finite(torch.from_numpy(values)) else _count_non_finite(torch.from_numpy(values))
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


def _decode_topk(component: Component, data: Tensor) -> None:
    indices, values = _topk_sections(data)
    component.buffer.zero_()
    start = 0
    for run in component.runs():
        first, end = (int(place) for place in np.searchsorted(indices, [start, start + len(run)]))
        for begin in range(first, end, _BLOCK):
            part = slice(begin, min(begin + _BLOCK, end))
            numbers = torch.empty(part.stop - begin, dtype=run.dtype)
            _store(numbers, torch.from_numpy(values[part]))
            run.index_copy_(0, torch.from_numpy(indices[part] - np.int64(start)), numbers)
        start += len(run)


def _topk_sections(data: Tensor) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Indices and values, as views; NumPy's, because PyTorch knows little of uint32."""
    middle = len(data) // 2
    return data[:middle].numpy().view(np.uint32), data[middle:].numpy().view(np.float32)


def _most_kept(total: int) -> int:
    return (total + 1) // 2


# all of them


def _blocks(component: Component) -> Iterator[tuple[int, Tensor]]:
    """The component's elements as float32 `(n,)`, with the number of the first; views where they are float32."""
    start = 0
    for run in component.runs():
        for block in _pieces(run, _BLOCK):
            yield start, _as_float32(block)
            start += len(block)


def _pieces(values: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    """Views of so many elements of a dimension each, the last may be shorter; none of an empty tensor."""
    length = values.shape[dim]
    return [values.narrow(dim, start, min(size, length - start)) for start in range(0, length, size)]


def _typed(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers; where there are none, whatever the stride, which PyTorch would mind."""
    return data.view(dtype) if len(data) else torch.empty(0, dtype=dtype)


def _as_float32(values: Tensor) -> Tensor:
    if values.dtype == torch.float64:
        most = torch.finfo(torch.float32).max
        values = values.clamp(-most, most)
    return values.to(torch.float32)


def _store(target: Tensor, values: Tensor) -> None:
    """Copy finite numbers to another dtype: rounded to nearest, ties to even, and saturated at its largest."""
    target.copy_(values)
    most = torch.finfo(target.dtype).max
    if most < torch.finfo(values.dtype).max:
        target.clamp_(-most, most)


def _clear_padding(component: Component) -> None:
    """Zero the bytes between tensors, so that the whole has the digest that it has at the other end."""
    end = 0
    for spec in component.layout.tensors:
        if spec.offset > end:
            component.buffer[end : spec.offset] = 0
        end = spec.end


def _require_finite_component(component: Component) -> None:
    if not all(_is_finite(block) for run in component.runs() for block in _pieces(run, _BLOCK)):
        component.require_finite()  # looks closer, and names the tensor


def _is_finite(values: Tensor) -> bool:
    """Sums first, and looks closer only if the sum isn't finite."""
    total = values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    return math.isfinite(total.item()) or bool(torch.isfinite(values).all())


def _count_non_finite(values: Tensor) -> int:
    return sum(int((~torch.isfinite(block)).sum()) for block in _pieces(values, _BLOCK))
