"""Adding adapters to weights: the same bits everywhere, and the right numbers."""

import hashlib
import math

import numpy as np
import pytest
import torch

from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.model.merging import merge, rank_of, stack, stack_layout
from fedmtl_core.wire.layout import Component, Layout

OUTPUTS, INPUTS = 96, 2000  # more elements than a block, and no multiple of it
LAYER = "encoder.layer.0.output"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"


def uniform(*shape, seed, scale=1.0):
    """Uniform values, which don't depend on the processor, as normal ones may in their last bits."""
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * scale


def factors_of(rank, seed):
    return {A: uniform(rank, INPUTS, seed=seed), B: uniform(OUTPUTS, rank, seed=seed + 1, scale=0.01)}


def layout_of(rank=4):
    return Layout.of("shared", factors_of(rank, 0))


CLIENTS = [factors_of(4, 10), factors_of(4, 20), factors_of(2, 30)]
COEFFICIENTS = [0.7, 0.2, 0.1]
STACK = stack(layout_of(), CLIENTS, COEFFICIENTS)
WEIGHT = uniform(OUTPUTS, INPUTS, seed=1, scale=0.05)


def merged(weight=WEIGHT, stacked=STACK, device="cpu"):
    weights = {f"{LAYER}.weight": weight.to(device, copy=True), "encoder.other.weight": torch.ones(2, 2)}
    merge(weights, stacked)
    assert torch.equal(weights["encoder.other.weight"], torch.ones(2, 2))
    return weights[f"{LAYER}.weight"]


def one_by_one(weight, stacked):
    """The same sum, one rank at a time, by NumPy's own operations on whole matrices."""
    a, b = (stacked.views()[f"stack/{name}"].numpy().astype(np.float64) for name in (A, B))
    total = np.zeros(weight.shape)
    for k in range(len(a)):
        total = total + b[:, k : k + 1] * a[k : k + 1]
    return torch.from_numpy((weight.numpy().astype(np.float64) + total).astype(np.float32))


def test_a_stack_has_the_clients_factors_beside_each_other_with_b_scaled():
    assert rank_of(STACK) == 10
    views = STACK.views()
    assert STACK.scope == "stack:shared"
    assert torch.equal(views[f"stack/{A}"], torch.cat([one[A] for one in CLIENTS]))
    scaled = [(one[B].double() * factor).float() for one, factor in zip(CLIENTS, COEFFICIENTS, strict=True)]
    assert torch.equal(views[f"stack/{B}"], torch.cat(scaled, dim=1))
    assert stack_layout(layout_of(), 10) == STACK.layout


def test_the_sum_has_the_bits_of_the_same_sum_in_numpy():
    assert torch.equal(merged(), one_by_one(WEIGHT, STACK))


def test_the_sum_has_the_same_bits_with_every_number_of_threads():
    before = torch.get_num_threads()
    try:
        sums = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            sums.append(merged())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, sums[0]) for one in sums)


def test_the_sum_has_these_bits_for_ever():
    """A client of another release, or in another language, must come to them too."""
    assert hashlib.sha256(merged().numpy().tobytes()).hexdigest() == GOLDEN


def test_the_sum_is_that_of_a_matrix_product_before_its_rounding():
    views = STACK.views()
    product = views[f"stack/{B}"].double() @ views[f"stack/{A}"].double()
    unrounded = merged(torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64))
    assert float((unrounded - product).norm() / product.norm()) < 1e-12


def test_the_sum_is_the_weighted_mean_of_the_clients_products():
    """To the rounding of the scaled B and of the weight, each to float32."""
    mean = sum(factor * one[B].double() @ one[A].double() for one, factor in zip(CLIENTS, COEFFICIENTS, strict=True))
    error = merged().double() - (WEIGHT.double() + mean)
    half_a_step = torch.finfo(torch.float32).eps / 2 * (WEIGHT.double() + mean).abs()
    assert float((error.abs() - half_a_step).clamp(min=0).norm()) <= 1e-6 * float(mean.norm())


def test_a_weight_beyond_its_range_becomes_infinite():
    huge = stack(layout_of(), [{A: torch.full((1, INPUTS), 1e30), B: torch.full((OUTPUTS, 1), 1e30)}], [1.0])
    assert math.isinf(float(merged(stacked=huge)[0, 0]))


def _without(name):
    tensors = {key: view for key, view in STACK.views().items() if key != name}
    return Component.pack("stack:shared", tensors)


def _with(name, tensor):
    return Component.pack("stack:shared", {**STACK.views(), name: tensor})


@pytest.mark.parametrize(
    ("stacked", "message"),
    [
        (_without(f"stack/{A}"), "expected two factors for each layer, got 1 tensors for 0 layers"),
        (_with(f"stack/{A}", torch.ones(10, 3)), r"expected factors of a weight \[96, 2000\], got B \[96, 10\] and A"),
        (_with(f"stack/{A}", torch.ones(9, INPUTS)), r"got B \[96, 10\] and A \[9, 2000\]"),
        (_with(f"stack/{B}", torch.ones(OUTPUTS, 10).double()), "expected a float32 matrix, got float64"),
        (_with(f"stack/{B}", torch.ones(OUTPUTS)), r"expected a float32 matrix, got float32 \[96\]"),
        (stack(Layout.of("shared", {"x.lora_A.weight": torch.ones(1, 2), "x.lora_B.weight": torch.ones(2, 1)}),
               [{"x.lora_A.weight": torch.ones(1, 2), "x.lora_B.weight": torch.ones(2, 1)}], [1.0]), "'x.weight'"),
    ],
)  # fmt: skip
def test_a_stack_that_does_not_fit_is_refused_and_changes_nothing(stacked, message):
    weights = {f"{LAYER}.weight": WEIGHT.clone()}
    with pytest.raises(LayoutMismatchError, match=message):
        merge(weights, stacked)
    assert torch.equal(weights[f"{LAYER}.weight"], WEIGHT)


GOLDEN = "dc6e8847e5a92a7c3c9611f6c0919c05027992b2a060fc023213d4ec136f447a"
