"""Parts of a task's rows whose labels are distributed unevenly, as clients' are: federated learning's non-IID setting.

After Hsu, Qi and Brown 2019 (arXiv:1909.06335): each part has a distribution over the labels of its own, drawn from a
Dirichlet distribution around that of all rows, and parts are of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedmtl_core.errors import DataError

NUM_BINS = 5
"""Values are told apart by the fifth of all rows that they lie in."""


@dataclass(frozen=True)
class LabelSkew:
    """How parts differ in their labels."""

    dirichlet: float
    """Concentration of the Dirichlet distribution, of all labels together: a part's shares of them are drawn from
    Dir(dirichlet * p), p being the shares among all rows. Near 0 a part has one label, far above 1 all have p."""
    seed: int = 0
    """Of everything drawn, 0 to 2^32 - 1. Parts are disjoint if all clients of the task have the same."""


def parts_of(groups: Sequence[int], num_parts: int, skew: LabelSkew) -> list[list[int]]:
    """Deal rows out to parts.

    The parts take turns, and each takes a row of a label drawn from its own distribution over the labels that are left.
    So the last ones have no more than others of what nobody wanted.

    Args:
        groups: each row's label, as any number that stands for it.
        num_parts: how many parts, at least 1.
        skew: how they differ.

    Returns:
        Row numbers by part: every row is in one of them, their sizes differ by 1 at most, the first ones' are larger.
        The order is random. The same arguments give the same parts everywhere, since NumPy keeps `RandomState` as
        it is.

    Raises:
        DataError: there are fewer rows than parts.
    """
    if num_parts > len(groups):
        raise DataError(f"{num_parts} parts of {len(groups)} rows: at least one would be empty")
    random = np.random.RandomState(skew.seed)
    labels, group_of = np.unique(np.asarray(groups), return_inverse=True)
    rows = [random.permutation(np.flatnonzero(group_of == label)).tolist() for label in range(len(labels))]
    left = np.asarray([len(of_label) for of_label in rows], dtype=np.float64)
    shares = [_shares(left / left.sum(), skew.dirichlet, random) for _ in range(num_parts)]
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for turn in range(len(groups)):
        label = _draw(shares[turn % num_parts], left, random)
        parts[turn % num_parts].append(rows[label].pop())
        left[label] -= 1
    return parts


def groups_of_values(values: Sequence[float]) -> list[int]:
    """The bin that each value lies in: `NUM_BINS` of about equally many rows, fewer where values repeat."""
    edges = np.unique(np.quantile(np.asarray(values), np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    return [int(bin_) for bin_ in np.digitize(np.asarray(values), edges)]


def _shares(
    of_all: npt.NDArray[np.float64], concentration: float, random: np.random.RandomState
) -> npt.NDArray[np.float64]:
    """A part's distribution over the labels."""
    drawn = random.dirichlet(concentration * of_all)
    if np.isfinite(drawn).all():
        return drawn
    # So small a concentration that every label's weight came out as 0: in the limit a part has one label.
    only = np.zeros(len(of_all))
    only[random.choice(len(of_all), p=of_all)] = 1
    return only


def _draw(share: npt.NDArray[np.float64], left: npt.NDArray[np.float64], random: np.random.RandomState) -> int:
    """A label that has rows left; where the part's own labels have none, as they are distributed among what is left."""
    weights = np.cumsum(share * (left > 0))
    if weights[-1] <= 0:
        weights = np.cumsum(left)
    return int(np.searchsorted(weights, random.random_sample() * weights[-1], side="right"))
