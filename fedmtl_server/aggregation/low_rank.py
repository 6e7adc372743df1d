"""Sums of low-rank products: a mean of products B A without the dense matrix.

For n clients' factors of rank r, Σ w B A is a product of two factors of rank n r: the scaled B side by side, and the A
one below the other. Its norm and its singular value decomposition need only matrices of n r rows and columns.
All computations are in float64.
"""

from __future__ import annotations

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

    @property
    def largest_rank(self) -> int:
        """The largest rank that a matrix of this shape can have: its smaller dimension."""
        return min(len(self.b), self.a.shape[1])


def weighted_sum(products: Sequence[Product], weights: Sequence[float]) -> Product:
    """Return Σ weight · B A as a product whose rank is the sum of the ranks, in float64."""
    b = torch.cat([one.b.double() * weight for one, weight in zip(products, weights, strict=True)], dim=1)
    return Product(b, torch.cat([one.a.double() for one in products]))


def distance(one: Product, other: Product) -> tuple[float, float]:
    """Return the Frobenius norms of one product minus another, and of the other, to float64's precision."""
    b, a = torch.cat([other.b.double(), one.b.double()], dim=1), torch.cat([other.a.double(), one.a.double()])
    if len(a) < one.largest_rank:  # orthonormal factors don't change a norm
        b, a = torch.linalg.qr(b, mode="r").R, torch.linalg.qr(a.T, mode="r").R.T
    rank = len(other.a)
    subtracted = b[:, :rank] @ a[:rank]
    norm = torch.linalg.matrix_norm
    return float(norm(b[:, rank:] @ a[rank:] - subtracted)), float(norm(subtracted))


@dataclass(frozen=True)
class Truncation:
    """The nearest product of a smaller rank."""

    product: Product
    """In float64."""
    lost: float
    """The Frobenius norm of the difference from the whole product."""
    norm: float
    """The Frobenius norm of the whole product."""


def truncated(product: Product, before: Product) -> Truncation:
    """Return the nearest product of the rank of another one. Its error is the norm of the singular values that are left
    out (Eckart and Young 1936, doi:10.1007/BF02288367).

    B has the left singular vectors times the singular values, and A the right singular vectors, whose rows are
    orthonormal. The largest come first, so that the first r columns of B and rows of A are the nearest product of rank
    r. Where the product has a smaller rank, columns of B are 0, and rows of A keep directions from before.

    Args:
        product: a product of any rank.
        before: the product that the result replaces; its rank is at most `product.largest_rank`. Each pair of vectors
            has the sign that brings it closer to the pair in its place before.
    """
    left, left_rest = torch.linalg.qr(product.b.double())
    right, right_rest = torch.linalg.qr(product.a.double().T)
    u, values, v = torch.linalg.svd(left_rest @ right_rest.T, full_matrices=False)
    rank = len(before.a)
    size = int((values[:rank] > values[0] * _precision(product)).sum())
    a, b = v[:size] @ right.T, left @ (u[:, :size] * values[:size])
    if size < rank:
        a = torch.cat([a, _new_rows(a, before.a.double(), rank - size)])
        b = torch.cat([b, b.new_zeros(len(b), rank - size)], dim=1)
    signs = torch.sign((a * before.a).sum(1) + (b * before.b).sum(0))
    signs[signs == 0] = 1
    return Truncation(Product(b * signs, a * signs[:, None]), float(values[size:].norm()), float(values.norm()))


def _precision(product: Product) -> float:
    """Return the share of the largest singular value that rounding makes of a singular value of 0."""
    return torch.finfo(torch.float64).eps * max(len(product.b), product.a.shape[1])


def _new_rows(rows: Tensor, before: Tensor, count: int) -> Tensor:
    """Return some orthonormal rows that are orthogonal to other ones: the directions of earlier rows that are least
    contained in them, or any.

    Args:
        rows: `(k, inputs)`, orthonormal.
        before: `(n, inputs)`, the earlier rows.
        count: the number of rows to return, at most `inputs - k`.
    """
    _, values, directions = torch.linalg.svd(before - before @ rows.T @ rows, full_matrices=False)
    directions = directions[values > torch.finfo(values.dtype).eps ** 0.5 * before.norm()]
    candidates = torch.cat([rows, directions])
    if len(directions) < count:
        candidates = torch.cat([candidates, torch.eye(rows.shape[1], dtype=rows.dtype)])
    orthonormal: Tensor = torch.linalg.qr(candidates.T).Q.T
    return orthonormal[len(rows) : len(rows) + count]
