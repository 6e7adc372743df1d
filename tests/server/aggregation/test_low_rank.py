"""Products of factors, against dense matrices in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_core.runtime.threads import in_one_thread
from fedmtl_server.aggregation.low_rank import Product, distance, truncated, weighted_sum
from tests.server.aggregation.adapters import cut


def product(seed, outputs, inputs, rank):
    draw = torch.Generator().manual_seed(seed)
    return Product(torch.randn(outputs, rank, generator=draw), torch.randn(rank, inputs, generator=draw))


def dense(one):
    return one.b.double().numpy() @ one.a.double().numpy()


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
RANKS = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@given(SIZES, RANKS, st.integers(0, 2**20))
@settings(deadline=None)
def test_a_sum_of_products_of_any_ranks_is_the_dense_sum_and_has_its_norm(size, ranks, seed):
    parts = [product(seed + number, *size, rank) for number, rank in enumerate(ranks)]
    weights = np.random.default_rng(seed).normal(size=len(parts)).tolist()
    total = weighted_sum(parts, weights)
    wanted = sum(weight * dense(one) for weight, one in zip(weights, parts, strict=True))
    scale = sum(abs(weight) * np.linalg.norm(dense(one)) for weight, one in zip(weights, parts, strict=True))
    np.testing.assert_allclose(dense(total), wanted, atol=1e-13 * scale)
    other = product(seed - 1, *size, 2)
    assert distance(other, total) == (
        pytest.approx(np.linalg.norm(dense(other) - wanted), rel=1e-12),
        pytest.approx(np.linalg.norm(wanted), abs=1e-13 * scale),
    )


@given(SIZES, RANKS, st.integers(1, 9), st.integers(0, 2**20))
@settings(deadline=None)
def test_a_truncated_product_is_numpys_truncated_decomposition_with_orthonormal_rows(size, ranks, rank, seed):
    total = weighted_sum([product(seed + n, *size, one) for n, one in enumerate(ranks)], [1.0] * len(ranks))
    rank = min(rank, total.largest_rank)
    truncation = truncated(total, product(seed - 1, *size, rank))
    nearest = truncation.product
    assert (nearest.b.shape, nearest.a.shape) == ((size[0], rank), (rank, size[1]))
    norm = np.linalg.norm(dense(total))
    np.testing.assert_allclose(dense(nearest), cut(dense(total), rank), atol=1e-6 * norm)  # gaps can be small
    lost = np.linalg.svd(dense(total), compute_uv=False)[rank:]
    assert truncation.lost == pytest.approx(np.linalg.norm(lost), abs=1e-12 * norm)
    assert truncation.norm == pytest.approx(norm)
    assert distance(nearest, total)[0] == pytest.approx(truncation.lost, abs=1e-12 * norm)
    np.testing.assert_allclose(nearest.a @ nearest.a.T, np.eye(rank), atol=1e-12)


@given(SIZES, st.integers(1, 9), st.integers(0, 2**20))
@settings(deadline=None)
def test_the_first_directions_of_a_truncated_product_are_the_nearest_product_of_fewer(size, fewer, seed):
    total = weighted_sum([product(seed + n, *size, 3) for n in range(3)], [0.5, 0.25, 0.25])
    nearest = truncated(total, product(seed - 1, *size, total.largest_rank)).product
    fewer = min(fewer, total.largest_rank)
    first = Product(nearest.b[:, :fewer], nearest.a[:fewer])
    np.testing.assert_allclose(dense(first), cut(dense(total), fewer), atol=1e-6 * np.linalg.norm(dense(total)))


def test_a_product_of_zeros_stays_zero_and_keeps_the_directions_of_its_rows():
    before = product(0, 6, 8, 3)
    before = Product(torch.zeros_like(before.b), before.a)
    nearest = truncated(weighted_sum([before, before], [0.5, 0.5]), before).product
    assert not nearest.b.any()
    np.testing.assert_allclose(nearest.a @ nearest.a.T, np.eye(3), atol=1e-12)
    assert np.linalg.matrix_rank(torch.cat([nearest.a, before.a.double()]), tol=1e-9) == 3


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_product_of_a_smaller_rank_keeps_directions_of_the_rows_before(rank):
    before, part = product(0, 9, 12, 4), product(1, 9, 12, rank)
    nearest = truncated(part, before).product
    np.testing.assert_allclose(dense(nearest), dense(part), atol=1e-12)
    assert not nearest.b[:, rank:].any()
    np.testing.assert_allclose(nearest.a @ nearest.a.T, np.eye(4), atol=1e-12)
    both = torch.cat([part.a, before.a]).double()
    assert np.linalg.matrix_rank(torch.cat([both, nearest.a]), tol=1e-9) == rank + 4


def test_rows_that_are_all_contained_in_others_are_replaced_by_any_new_ones():
    part = product(1, 9, 12, 2)
    nearest = truncated(part, Product(torch.zeros(9, 4), torch.cat([part.a, part.a]))).product
    np.testing.assert_allclose(nearest.a @ nearest.a.T, np.eye(4), atol=1e-12)


def test_a_truncated_product_is_its_own_truncation():
    """A round in which nobody trains doesn't change the factors, nor turn the signs of their vectors."""
    once = truncated(product(3, 20, 30, 9), product(4, 20, 30, 5)).product
    turned = Product(once.b * torch.tensor([1, -1, 1, -1, -1]), once.a * torch.tensor([[1], [-1], [1], [-1], [-1]]))
    for before in (once, turned):
        again = truncated(before, before).product
        np.testing.assert_allclose(again.b, before.b, atol=1e-11)
        np.testing.assert_allclose(again.a, before.a, atol=1e-11)


def test_the_difference_of_equal_products_is_zero_to_float64s_precision():
    """Squares of norms would leave 1e-8."""
    one = product(0, 40, 30, 4)
    turned = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    other = Product(one.b.double() @ turned, turned.T @ one.a.double())
    assert distance(one, other)[0] < 1e-14 * distance(one, other)[1]


def test_the_last_bits_do_not_depend_on_the_number_of_threads():
    parts = [product(seed, 300, 400, 8) for seed in range(12)]
    before = product(12, 300, 400, 8)
    found, usual = set(), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with in_one_thread():
                nearest = truncated(weighted_sum(parts, [1 / 12] * 12), before).product
            assert torch.get_num_threads() == threads
            found.add(nearest.a.numpy().tobytes() + nearest.b.contiguous().numpy().tobytes())
    finally:
        torch.set_num_threads(usual)
    assert len(found) == 1
