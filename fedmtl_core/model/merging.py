"""Merging adapters into the base, to the same bits on every machine (FLoRA; Wang et al. 2024, arXiv:2409.05976).

After a round, each adapted weight W becomes W + Σ c B A over the clients' factors, where c is a client's share times
the adapters' scale. The stack of a round has all these factors: the scaled B side by side, and the A one below the
other. Server and clients add it to their own copies of W. Both must then have the same bits, since adapters are trained
for exactly one base. A matrix product of a library depends on the processor and the number of threads. Here, each
element is one sum in a fixed order:

    sum = 0;  for k = 0 … rank - 1: sum = sum + b[i, k] · a[k, j];  W[i, j] = W[i, j] + sum

in float64, rounded once to the dtype of W. The factors are float32, so that each product is exact, with or without a
fused multiply-add; only the order of the additions matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.identifiers import quoted
from fedmtl_core.model.adapters import factor_names
from fedmtl_core.model.scopes import stack_scope
from fedmtl_core.wire.layout import Component, Layout

_BLOCK = 2**15 - 1
"""Number of elements per block of a weight. The sums of a block stay in the cache, and PyTorch computes so few elements
in one thread. With more, the threads wait for one another at each rank, which a busy machine makes slow."""
_NAME_PREFIX = "stack/"


def stack_layout(layout: Layout, rank: int) -> Layout:
    """Return the layout of a component's stack: the tensor of the factor NAME is `stack/NAME`, always float32.

    Args:
        layout: the layout of a component with both factors of its adapters.
        rank: the sum of the clients' ranks.
    """
    shapes = {spec.name: spec.shape for spec in layout.tensors}
    tensors: dict[str, Tensor] = {}
    for a, b in factor_names(shapes).values():
        tensors[_NAME_PREFIX + a] = torch.empty(rank, shapes[a][1], device="meta")
        tensors[_NAME_PREFIX + b] = torch.empty(shapes[b][0], rank, device="meta")
    return Layout.of(stack_scope(layout.scope), tensors)


def rank_of(stacked: Component) -> int:
    """Return the rank of a stack: the sum of its clients' ranks."""
    return stacked.layout.tensors[0].shape[0]


def stack(layout: Layout, factors: Sequence[Mapping[str, Tensor]], coefficients: Sequence[float]) -> Component:
    """Return the stack of some clients' adapters.

    Args:
        layout: the layout of the component that has the adapters.
        factors: by client, its factors by name: A `(rank, inputs)` and B `(outputs, rank)`, of any float dtype.
        coefficients: by client, the factor on its products B A. B is multiplied by it in float64, and rounded once.
    """
    pairs = factor_names([spec.name for spec in layout.tensors])
    rank = sum(len(one[next(iter(pairs.values()))[0]]) for one in factors)
    component = Component(stack_layout(layout, rank))
    views = component.views()
    for a, b in pairs.values():
        views[_NAME_PREFIX + a].copy_(torch.cat([one[a] for one in factors]))
        scaled = [one[b].double() * coefficient for one, coefficient in zip(factors, coefficients, strict=True)]
        views[_NAME_PREFIX + b].copy_(torch.cat(scaled, dim=1))
    return component


def merge(weights: Mapping[str, Tensor], stacked: Component) -> None:
    """Add a stack's products to weights in place, on any device. The computation is on CPU.

    Args:
        weights: by name, `(outputs, inputs)`; at least those whose adapters are in the stack.
        stacked: the stack.

    Raises:
        LayoutMismatchError: the stack doesn't fit the weights, which are then unchanged.
    """
    views = stacked.views()
    pairs = {
        f"{layer.removeprefix(_NAME_PREFIX)}.weight": (views[a], views[b])
        for layer, (a, b) in factor_names(views).items()
    }
    _require_fit(weights, pairs, stacked)
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            weight = weights[name]
            own = weight if weight.device.type == "cpu" else weight.cpu()
            _add_product(own, b.double(), a.double())
            if own is not weight:
                weight.copy_(own)


def _require_fit(weights: Mapping[str, Tensor], pairs: Mapping[str, tuple[Tensor, Tensor]], stacked: Component) -> None:
    """Check that a stack has only factors of the weights."""
    for spec in stacked.layout.tensors:
        if spec.dtype != torch.float32 or len(spec.shape) != 2:
            raise LayoutMismatchError(f"{stacked.scope}: {spec.name}: expected a float32 matrix, got {spec}")
    if 2 * len(pairs) != len(stacked.layout.tensors):
        raise LayoutMismatchError(
            f"{stacked.scope}: expected two factors for each layer, got {len(stacked.layout.tensors)} tensors for "
            f"{len(pairs)} layers"
        )
    for name, (a, b) in pairs.items():
        expected = tuple(weights[name].shape) if name in weights else None
        if expected != (len(b), a.shape[1]) or b.shape[1] != len(a):
            raise LayoutMismatchError(
                f"{stacked.scope}: {quoted(name)}: expected factors of a weight {list(expected or ())}, got B "
                f"{list(b.shape)} and A {list(a.shape)}"
            )


def _add_product(weight: Tensor, b: Tensor, a: Tensor) -> None:
    """Add B A to a weight on CPU in place, in the order that the module describes.

    Args:
        weight: `(outputs, inputs)`.
        b: float64 `(outputs, rank)`, with values of float32.
        a: float64 `(rank, inputs)`, with values of float32.
    """
    rows = max(1, _BLOCK // max(1, weight.shape[1]))
    for start in range(0, len(weight), rows):
        block = weight[start : start + rows]
        total = torch.zeros(block.shape, dtype=torch.float64)
        for k in range(len(a)):
            total.addcmul_(b[start : start + rows, k : k + 1], a[k : k + 1])
        block.copy_(total.add_(block))
