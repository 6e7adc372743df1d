"""How far an update moves the model, component by component: the L2 norm of its delta, trained minus base parameters.

Functions of their arguments: the same bytes have the same norm to the last bit, whatever the number of threads.
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
"""Elements that are looked at together: their difference from the base stays in the cache."""
_PIECE = 8 * _BLOCK
"""Elements that one thread takes at a time."""
_THREADS = ThreadPoolExecutor(os.cpu_count(), "norms")
_ROW = 2**12
"""Elements whose squares are summed up in float32. BLAS does so few without threads, so always in the same order."""
_WITHOUT_WARNINGS = partial(np.errstate, over="ignore", under="ignore", invalid="ignore")
"""What they would be of is looked at more closely."""
_LEAST, _MOST = 1e-24, 1e30
"""Sums of squares that float32 can be trusted with; others are taken again in float64."""


def reference_norm(component: Component) -> float:
    """What the norms of updates are held against: the model's own in a component, or what that would be with elements
    of 1 if it is less, such as that of a bias that begins at 0."""
    return max(norm_of(component), math.sqrt(component.layout.num_elements))


def update_norms(
    kind: UpdateKind, components: Mapping[str, Component], base: Mapping[str, Component]
) -> dict[str, float]:
    """By scope, how far an update moves the model. Parameters of what the base hasn't got tell nothing.

    Args:
        kind: whether the components are a delta, or parameters that are taken to have started from the base.
        components: finite.
        base: the model's components.
    """
    if kind == "delta":
        return {scope: norm_of(component) for scope, component in components.items()}
    return {scope: norm_of(component, base[scope]) for scope, component in components.items() if scope in base}


def are_ordinary(norms: Mapping[str, float]) -> bool:
    """Whether norms of float32 numbers are such that all of these are finite. Others need a closer look."""
    return all(norm < _MOST for norm in norms.values())  # of a NaN the norm is one, of an infinity the largest number


def norm_of(component: Component, base: Component | None = None) -> float:
    """The L2 norm of a component's numbers, all of its dtypes together; of their difference from a base if given.

    One pass. It never overflows: what is beyond float64's largest number is that number.

    Args:
        component: finite.
        base: of the same layout, finite.

    Raises:
        LayoutMismatchError: it is laid out otherwise.
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
    """The norm of one block after the other of a float32 vector, or of one of two bytes an element.

    The blocks are shared among threads: their norms don't depend on who took them.
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
    """The norm of one block after the other of a float64 vector, brought to a size at which nothing overflows."""
    norms = []
    for start in range(0, len(run), _BLOCK):
        values = run[start : start + _BLOCK].numpy()
        base = None if origin is None else origin[start : start + _BLOCK].numpy()
        largest = float(np.max([np.abs(one).max() for one in (values, base) if one is not None]))
        if not math.isfinite(largest):  # NaN isn't above 0, and not nothing either
            norms.append(largest)
        elif largest > 0:
            unit = math.ldexp(1.0, math.frexp(largest)[1] - 1)  # a power of two rounds nothing
            delta = values / unit if base is None else values / unit - base / unit
            norms.append(unit * math.sqrt(_sum_of_squares(delta)))
    return norms


def _sum_of_squares(values: NDArray[Any]) -> float:
    rows = len(values) - len(values) % _ROW
    matrix, rest = values[:rows].reshape(-1, _ROW), values[rows:]
    return float(np.vecdot(matrix, matrix).sum(dtype=np.float64)) + float(np.vecdot(rest, rest))


def _as_float32(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.to(torch.float32).numpy()  # a view where it is float32 already
    return array


def _as_float32_or_none(values: Tensor | None, start: int) -> NDArray[np.float32] | None:
    return None if values is None else _as_float32(values[start : start + _BLOCK])
