"""Sums of low-rank products: a mean of products B A without the dense matrix.

For n clients' factors of rank r, Σ w B A is a product of two factors of rank n r: the scaled B side by side, and the A
one below the other. Its norm and its singular value decomposition need only matrices of n r rows and columns.
All computations are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """A product B A of two factors."""

    b: Tensor
    """`(outputs, rank)`."""
    a: Tensor
    """`(rank, inputs)`."""

    def norm(self) -> float:
        """Return the Frobenius norm of the product."""
        gram = (self.b.T @ self.b) * (self.a @ self.a.T)
        return math.sqrt(max(float(gram.sum()), 0.0))


def weighted_sum(products: Sequence[Product], weights: Sequence[float]) -> Product:
    """Return Σ weight · B A as a product whose rank is the sum of the ranks, in float64."""
    b = torch.cat([one.b.double() * weight for one, weight in zip(products, weights, strict=True)], dim=1)
    return Product(b, torch.cat([one.a.double() for one in products]))


def difference(one: Product, other: Product) -> Product:
    """Return one product minus another, in float64."""
    return weighted_sum([one, other], [1.0, -1.0])


def truncated(product: Product, rank: int) -> Product:
    """Return the nearest product of a rank, in float64: B has the left singular vectors times the singular values, and
    A the right singular vectors, whose rows are orthonormal. The largest come first, so that the first r columns of B
    and rows of A are the nearest product of rank r.

    The error is the norm of the singular values that are left out (Eckart and Young 1936, doi:10.1007/BF02288367).

    Args:
        product: a product of any rank.
        rank: at most the smaller dimension of the product; beyond the product's own rank, columns of B are 0.
    """
    left, left_rest = torch.linalg.qr(product.b)
    right, right_rest = torch.linalg.qr(product.a.T)
    u, values, v = torch.linalg.svd(left_rest @ right_rest.T)
    size = min(rank, len(values))
    b, a = left @ (u[:, :size] * values[:size]), (right @ v[:size].T).T
    if size == rank:
        return Product(b, a)
    more = rank - size
    complement = torch.linalg.qr(torch.cat([right, torch.eye(a.shape[1], dtype=a.dtype)], dim=1))[0]
    rows = complement[:, right.shape[1] : right.shape[1] + more].T
    return Product(torch.cat([b, b.new_zeros(len(b), more)], dim=1), torch.cat([a, rows]))


def inexactness(products: Sequence[Product], weights: Sequence[float], served: Product) -> tuple[float, float]:
    """Return the norm of served - Σ weight · B A, and the norm of that sum."""
    wanted = weighted_sum(products, weights)
    return difference(served, wanted).norm(), wanted.norm()
