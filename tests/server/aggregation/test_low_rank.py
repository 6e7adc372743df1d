"""Products of factors, against dense matrices in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_server.aggregation.low_rank import Product, difference, in_one_thread, truncated, weighted_sum
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
    assert total.norm() == pytest.approx(np.linalg.norm(wanted), abs=1e-13 * scale)


@given(SIZES, RANKS, st.integers(1, 9), st.integers(0, 2**20))
@settings(deadline=None)
def test_a_truncated_product_is_numpys_truncated_decomposition_with_orthonormal_rows(size, ranks, rank, seed):
    total = weighted_sum([product(seed + n, *size, one) for n, one in enumerate(ranks)], [1.0] * len(ranks))
    rank = min(rank, total.largest_rank)
    nearest = truncated(total, rank)
    assert (nearest.b.shape, nearest.a.shape) == ((size[0], rank), (rank, size[1]))
    norm = np.linalg.norm(dense(total))
    np.testing.assert_allclose(dense(nearest), cut(dense(total), rank), atol=1e-6 * norm)  # gaps can be small
    lost = np.linalg.svd(dense(total), compute_uv=False)[rank:]
    assert difference(nearest, total).norm() == pytest.approx(np.linalg.norm(lost), abs=1e-12 * norm)
    np.testing.assert_allclose(nearest.a @ nearest.a.T, np.eye(rank), atol=1e-12)


@given(SIZES, st.integers(1, 9), st.integers(0, 2**20))
@settings(deadline=None)
def test_the_first_directions_of_a_truncated_product_are_the_nearest_product_of_fewer(size, fewer, seed):
    total = weighted_sum([product(seed + n, *size, 3) for n in range(3)], [0.5, 0.25, 0.25])
    nearest = truncated(total, total.largest_rank)
    fewer = min(fewer, total.largest_rank)
    first = Product(nearest.b[:, :fewer], nearest.a[:fewer])
    np.testing.assert_allclose(dense(first), cut(dense(total), fewer), atol=1e-6 * np.linalg.norm(dense(total)))


def test_a_product_of_zeros_stays_zero_and_keeps_rows_that_can_be_trained():
    one = product(0, 6, 5, 3)
    nearest = truncated(weighted_sum([Product(torch.zeros_like(one.b), one.a)], [1.0]), 4)
    assert not nearest.b.any()
    np.testing.assert_allclose(nearest.a @ nearest.a.T, np.eye(4), atol=1e-12)


def test_the_difference_of_equal_products_is_zero_to_float64s_precision():
    """Squares of norms would leave 1e-8."""
    one = product(0, 40, 30, 4)
    turned = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    other = Product(one.b.double() @ turned, turned.T @ one.a.double())
    assert difference(one, other).norm() < 1e-14 * one.norm()


def test_the_last_bits_do_not_depend_on_the_number_of_threads():
    parts = [product(seed, 300, 400, 8) for seed in range(12)]
    found, before = set(), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with in_one_thread():
                nearest = truncated(weighted_sum(parts, [1 / 12] * 12), 8)
            assert torch.get_num_threads() == threads
            found.add(nearest.a.numpy().tobytes() + nearest.b.contiguous().numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1
