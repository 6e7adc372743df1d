"""The L2 norm of an update's delta, trained minus base parameters, for each component.

The same bytes have the same norm to the last bit, whatever the number of threads.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl_core.tasks.plan import UpdateKind
from fedmtl_core.wire.layout import Component

_BLOCK = 2**17
"""Number of elements per block, whose difference from the base stays in the cache."""
_PIECE = 8 * _BLOCK
"""Number of elements that one thread processes at a time."""
_THREADS = ThreadPoolExecutor(os.cpu_count(), "norms")
_ROW = 2**12
"""Number of squares that are summed in float32. BLAS sums so few without threads, hence always in the same order."""
_WITHOUT_WARNINGS = partial(np.errstate, over="ignore", under="ignore", invalid="ignore")
"""Suppresses NumPy's warnings; the values concerned are computed again in float64."""
_LEAST, _MOST = 1e-24, 1e30
"""Range of sums of squares for which float32 is accurate; others are computed again in float64."""


def reference_norm(component: Component) -> float:
    """Return the norm with which updates' norms are compared: the norm of the model's component.

    The norm of the same component with all elements 1 is the minimum, for example for a bias that starts at 0.
    """
    return max(norm_of(component), math.sqrt(component.layout.num_elements))


def update_norms(
    kind: UpdateKind, components: Mapping[str, Component], base: Mapping[str, Component]
) -> dict[str, float]:
    """Return the norm of an update's delta by scope. Scopes of parameters that the base doesn't contain are left out.

    Args:
        kind: whether the components are a delta, or parameters whose training is assumed to have started from `base`.
        components: the update's components, finite.
        base: the model's components.
    """
    if kind == "delta":
        return {scope: norm_of(component) for scope, component in components.items()}
    return {scope: norm_of(component, base[scope]) for scope, component in components.items() if scope in base}


def are_ordinary(norms: Mapping[str, float]) -> bool:
    """Return whether the norms show that all float32 numbers are finite. Otherwise the numbers must be checked."""
    return all(norm < _MOST for norm in norms.values())  # the norm of a NaN is NaN, of an infinity the largest number


def norm_of(component: Component, base: Component | None = None) -> float:
    """Return the L2 norm of all numbers of a component, or of their difference from a base.

    The norm takes one pass and never overflows: it is capped at float64's largest number.

    Args:
        component: the component, finite.
        base: a component of the same layout, finite; None for the norm of the component itself.

    Raises:
        LayoutMismatchError: the base has another layout.
    """
    if base is not None:
        component.layout.require_same(base.layout)
    origins = base.runs() if base else [None] * len(component.layout.runs)
    with _WITHOUT_WARNINGS():
        parts = [
            norm
            for run, origin in zip(component.runs(), origins, strict=True)
            for norm in (_norms_in_float64 if run.dtype == torch.float64 else _norms_in_float32)(run, origin)
        ]
    return min(math.hypot(*parts), sys.float_info.max)


def _norms_in_float32(run: Tensor, origin: Tensor | None) -> list[float]:
    """Return the norm of each block of a float32 vector, or of a vector with two bytes per element.

    Threads share the blocks; the norms don't depend on which thread computes a block.
    """
    pieces = range(0, len(run), _PIECE)

    def norms_from(first: int) -> list[float]:
        scratch = np.empty(min(_BLOCK, len(run)), np.float32)
        with _WITHOUT_WARNINGS():
            return [
                _norm_in_float32(_as_float32(run[start : start + _BLOCK]), _as_float32_or_none(origin, start), scratch)
                for start in range(first, min(first + _PIECE, len(run)), _BLOCK)
            ]

    found = _THREADS.map(norms_from, pieces) if len(pieces) > 1 else map(norms_from, pieces)
    return [norm for norms in found for norm in norms]


def _norm_in_float32(
    values: NDArray[np.float32], origin: NDArray[np.float32] | None, scratch: NDArray[np.float32]
) -> float:
    delta = values if origin is None else np.subtract(values, origin, out=scratch[: len(values)])
    squares = _sum_of_squares(delta)
    if _LEAST < squares < _MOST or not delta.any():
        return math.sqrt(squares)
    exact = values.astype(np.float64)
    return math.sqrt(_sum_of_squares(exact if origin is None else exact - origin))


def _norms_in_float64(run: Tensor, origin: Tensor | None) -> list[float]:
    """Return the norm of each block of a float64 vector, scaled so that nothing overflows."""
    norms = []
    for start in range(0, len(run), _BLOCK):
        values = run[start : start + _BLOCK].numpy()
        base = None if origin is None else origin[start : start + _BLOCK].numpy()
        largest = float(np.max([np.abs(one).max() for one in (values, base) if one is not None]))
        if not math.isfinite(largest):  # also NaN, which isn't above 0
            norms.append(largest)
        elif largest > 0:
            unit = math.ldexp(1.0, math.frexp(largest)[1] - 1)  # dividing by a power of two is exact
            delta = values / unit if base is None else values / unit - base / unit
            norms.append(unit * math.sqrt(_sum_of_squares(delta)))
    return norms


def _sum_of_squares(values: NDArray[Any]) -> float:
    rows = len(values) - len(values) % _ROW
    matrix, rest = values[:rows].reshape(-1, _ROW), values[rows:]
    return float(np.vecdot(matrix, matrix).sum(dtype=np.float64)) + float(np.vecdot(rest, rest))


def _as_float32(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.to(torch.float32).numpy()  # a view if it is float32 already
    return array


def _as_float32_or_none(values: Tensor | None, start: int) -> NDArray[np.float32] | None:
    return None if values is None else _as_float32(values[start : start + _BLOCK])
