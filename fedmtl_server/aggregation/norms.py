"""How far an update moves the model, component by component, and what becomes of one that moves it too far.

The norm is that of the delta: trained minus base parameters. Scaling a delta down to a bound before it is averaged
takes from one client the power to replace the model (Sun et al. 2019, arXiv:1911.07963). A bound that is a multiple
of the median of recent norms follows the run by itself, as in Andrew et al. 2021 (arXiv:1905.03871), which tracks a
quantile.

Functions of their arguments: the same bytes have the same norm to the last bit, whatever the number of threads, and
the same history gives the same bounds.
"""

from __future__ import annotations

import math
import os
import sys
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median_low
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl_core.config import NormAction
from fedmtl_core.errors import NormExceededError
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


class RecentNorms:
    """The norms that updates counted with, of the last rounds that changed each component.

    Args:
        window: so many rounds.
    """

    def __init__(self, window: int):
        self._by_scope: dict[str, deque[list[float]]] = defaultdict(lambda: deque(maxlen=window))

    def add(self, norms: Mapping[str, Sequence[float]]) -> None:
        """Take in a round's: by scope, the norms that updates counted with."""
        for scope, all_of_them in norms.items():
            if larger := [norm for norm in all_of_them if norm > 0]:  # of 0 nothing could grow
                self._by_scope[scope].append(larger)

    def of(self, scope: str) -> list[float]:
        """All of a component's."""
        return [norm for norms in self._by_scope.get(scope, ()) for norm in norms]


@dataclass(frozen=True)
class NormRule:
    """What becomes of updates by their norms."""

    action: NormAction = "none"
    bound: float | None = None
    """The most that a component's delta may have."""
    median_factor: float | None = None
    """So many times the median of the norms that counted is the most, once any did."""
    window: int = 5
    """Rounds to take the median over: the last that changed the component."""
    model_factor: float | None = None
    """So many times the model's own norm is the most for any update, whatever the action; None for no such limit."""

    @property
    def measures(self) -> bool:
        """Whether norms are looked at."""
        return self.action != "none"

    def limits(self, model_norms: Mapping[str, float]) -> dict[str, float]:
        """The most that any update's norm may be, by scope: a single one beyond it would ruin the model.

        Args:
            model_norms: the model's own; see `reference_norm`.
        """
        if self.model_factor is None or not self.measures:
            return {}
        return {scope: self.model_factor * norm for scope, norm in model_norms.items()}

    def bounds(self, scopes: Collection[str], recent: RecentNorms) -> dict[str, float]:
        """The most that a delta's norm may be in the next round; a scope without a bound is absent.

        What was clipped is in the history as what it was clipped to, and what was refused isn't. So one who sends
        ever larger updates, even if nobody else does, can raise the bound by no more than the factor a round.
        """
        if self.action not in ("clip", "refuse"):
            return {}
        bounds = {} if self.bound is None else dict.fromkeys(scopes, self.bound)
        if self.median_factor is not None:
            for scope in scopes:
                if norms := recent.of(scope):
                    # The lower of the two in the middle: half of the norms, however large, don't raise it.
                    bounds[scope] = min(bounds.get(scope, math.inf), self.median_factor * median_low(norms))
        return bounds


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


def require_within(norms: Mapping[str, float], bounds: Mapping[str, float], why: str = "") -> None:
    """Check that an update moves no component further than is allowed.

    Args:
        norms: the update's, by scope.
        bounds: the most that is allowed, by scope.
        why: where the bound comes from, for the message.

    Raises:
        NormExceededError: it does.
    """
    for scope, norm in norms.items():
        if scope in bounds and not norm <= bounds[scope]:  # NaN is within no bound
            raise NormExceededError(
                f"{scope}: the update moves it by an L2 norm of {norm:.6g}, at most {bounds[scope]:.6g} is allowed"
                f"{why}",
                scope=scope,
                norm=f"{norm:.6g}",
                allowed=f"{bounds[scope]:.6g}",
            )


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
