"""Tasks' deltas: their inner products, and their weighted sum. One pass over them each, block by block in the cache.

The same bytes give the same result to the last bit, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl_core.wire.layout import Component

_BLOCK = 2**19
"""Elements that are computed with at a time; a whole number of rows."""
_ROW = 2**12
"""Elements whose products are summed up in float32. BLAS does so few without threads, so always in the same order."""
_LEAST, _MOST = 1e-24, 1e30
"""Squared norms that float32 can be trusted with; blocks with others are taken again in float64."""


def inner_products(base: Component, means: Sequence[Sequence[Tensor]]) -> NDArray[np.float64]:
    """The inner products of deltas, each a mean minus the base.

    Args:
        base: the model's component.
        means: each a component's runs, in float32 or float64.

    Returns:
        Float64 `(means, means)`, symmetric.
    """
    total = np.zeros((len(means), len(means)))
    for _, origin, values in _blocks(base, means):
        total += _block_products([origin] * len(values), values)
    return total


def inner_products_of(moves: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> NDArray[np.float64]:
    """The inner products of deltas that don't begin in the same place.

    Args:
        moves: for each delta the flat vectors that it consists of, where each began and where it ended; of the same
            lengths for all of them.

    Returns:
        Float64 `(moves, moves)`, symmetric.
    """
    total = np.zeros((len(moves), len(moves)))
    for vectors in zip(*moves, strict=True):
        for start in range(0, len(vectors[0][0]), _BLOCK):
            block = slice(start, start + _BLOCK)
            ends = [end[block] for _, end in vectors]
            origins = [origin[block].to(end.dtype) for (origin, _), end in zip(vectors, ends, strict=True)]
            total += _block_products(origins, ends)
    return total


def combine(base: Component, means: Sequence[Sequence[Tensor]], coefficients: Sequence[float]) -> None:
    """Make the first of several means base + Σ c (mean - base).

    Args:
        base: the model's component.
        means: each a component's runs, in float32 or float64; the first is overwritten.
        coefficients: one for each.
    """
    for target, origin, values in _blocks(base, means):
        moved = origin.clone()
        for value, coefficient in zip(values, coefficients, strict=True):
            moved.add_(value.sub(origin), alpha=coefficient)
        target.copy_(moved)


def _blocks(base: Component, means: Sequence[Sequence[Tensor]]) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """Block by block: the first mean's, to be written to; the base's, in the means' dtype; and all means'."""
    for run, *values in zip(base.runs(), *means, strict=True):
        for start in range(0, len(run), _BLOCK):
            block = slice(start, start + _BLOCK)
            parts = [value[block] for value in values]
            yield parts[0], run[block].to(parts[0].dtype), parts


def _block_products(origins: Sequence[Tensor], values: Sequence[Tensor]) -> NDArray[np.float64]:
    """Of what values differ from their origins by; in float32 where that can be trusted."""
    narrow = [value.sub(origin).to(torch.float32).numpy() for origin, value in zip(origins, values, strict=True)]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        products = _products(narrow)
    squares = np.diag(products)
    if all(_LEAST < square < _MOST or not delta.any() for square, delta in zip(squares, narrow, strict=True)):
        return products
    wide = [origin.to(torch.float64) for origin in origins]
    return _products([value.to(torch.float64).sub(origin).numpy() for origin, value in zip(wide, values, strict=True)])


def _products(deltas: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    products = np.empty((len(deltas), len(deltas)))
    for i, one in enumerate(deltas):
        for j, other in enumerate(deltas[: i + 1]):
            products[i, j] = products[j, i] = _product(one, other)
    return products


def _product(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    rows = len(one) - len(one) % _ROW
    whole = np.vecdot(one[:rows].reshape(-1, _ROW), other[:rows].reshape(-1, _ROW)).sum(dtype=np.float64)
    return float(whole) + float(np.vecdot(one[rows:], other[rows:]))
