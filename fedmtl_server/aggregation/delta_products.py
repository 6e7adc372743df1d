"""Inner products and weighted sums of tasks' deltas, each in one pass, block by block in the cache.

The same bytes give the same result to the last bit, whatever the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl_core.wire.layout import Component

_BLOCK = 2**19
"""Number of elements per block; a multiple of `_ROW`."""
_ROW = 2**12
"""Number of products that are summed in float32. BLAS sums so few without threads, hence always in the same order."""
_LEAST, _MOST = 1e-24, 1e30
"""Range of squared norms for which float32 is accurate; blocks outside it are computed again in float64."""


def inner_products(base: Component, means: Sequence[Sequence[Tensor]]) -> NDArray[np.float64]:
    """Return the inner products of deltas, each a mean minus the base.

    Args:
        base: the model's component.
        means: for each mean, a component's runs in float32 or float64.

    Returns:
        Float64 `(means, means)`, symmetric.
    """
    total = np.zeros((len(means), len(means)))
    for run, *vectors in zip(base.runs(), *means, strict=True):
        for origin, values in _blocks_of(run, vectors):
            total += _block_products([origin] * len(values), values)
    return total


def inner_products_of(deltas: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> NDArray[np.float64]:
    """Return the inner products of deltas with different base values.

    Args:
        deltas: for each delta its flat vectors, as pairs of base values and new values; all deltas have vectors of the
            same lengths.

    Returns:
        Float64 `(deltas, deltas)`, symmetric.
    """
    total = np.zeros((len(deltas), len(deltas)))
    for vectors in zip(*deltas, strict=True):
        for start in range(0, len(vectors[0][0]), _BLOCK):
            block = slice(start, start + _BLOCK)
            ends = [end[block] for _, end in vectors]
            origins = [origin[block].to(end.dtype) for (origin, _), end in zip(vectors, ends, strict=True)]
            total += _block_products(origins, ends)
    return total


def products_of(deltas: Sequence[Sequence[Tensor]]) -> NDArray[np.float64]:
    """Return the inner products of deltas.

    Args:
        deltas: for each delta its flat vectors; all deltas have vectors of the same lengths.

    Returns:
        Float64 `(deltas, deltas)`, symmetric.
    """
    return inner_products_of([[(torch.zeros(()).expand(len(one)), one) for one in vectors] for vectors in deltas])


def preserving_factor(shares: NDArray[np.float64], products: NDArray[np.float64]) -> float:
    """Return the factor that gives a weighted sum of deltas the weighted mean of their norms.

    Args:
        shares: the deltas' coefficients, `(tasks,)`, all other than 0; their absolute values add up to 1.
        products: the inner products of the deltas, `(tasks, tasks)`.

    Returns:
        From 1 to the square root of the number of tasks; 1 if all deltas are 0.
    """
    target = math.fsum(abs(share) * math.sqrt(square) for share, square in zip(shares, np.diag(products), strict=True))
    length = math.sqrt(max(float(shares @ products @ shares), 0.0))
    most = math.sqrt(len(shares))
    if target <= length:
        return 1.0
    return target / length if target < most * length else most


def combine(base: Tensor, means: Sequence[Tensor], coefficients: Sequence[float]) -> None:
    """Overwrite the first of several flat vectors with base + Σ c (mean - base).

    Args:
        base: the model's values, `(n,)`.
        means: for each mean, its values in float32 or float64, `(n,)`; the first mean is overwritten.
        coefficients: one coefficient for each mean.
    """
    for origin, values in _blocks_of(base, means):
        moved = origin.clone()
        for value, coefficient in zip(values, coefficients, strict=True):
            moved.add_(value.sub(origin), alpha=coefficient)
        values[0].copy_(moved)


def _blocks_of(base: Tensor, means: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield the blocks of flat vectors: the base's values, in the means' dtype, and views of all means' values."""
    for start in range(0, len(base), _BLOCK):
        block = slice(start, start + _BLOCK)
        values = [mean[block] for mean in means]
        yield base[block].to(values[0].dtype), values


def _block_products(origins: Sequence[Tensor], values: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return the inner products of the values minus their origins, in float32 where that is accurate."""
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
