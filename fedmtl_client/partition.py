"""Parts of a task's rows with skewed label distributions: the non-IID setting of federated learning.

The method is that of Hsu, Qi and Brown 2019 (arXiv:1909.06335). Each part has its own label distribution, drawn from a
Dirichlet distribution around that of all rows. Parts are of equal size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedmtl_core.errors import DataError

NUM_BINS = 5
"""Values are grouped into this many quantile bins, each with a fifth of all rows."""


@dataclass(frozen=True)
class LabelSkew:
    """The label skew between parts."""

    dirichlet: float
    """Concentration of the Dirichlet distribution, summed over the labels. A part's label shares are drawn from
    Dir(dirichlet * p), with p the shares among all rows. Near 0 a part has one label; far above 1 all have p."""
    seed: int = 0
    """Seed of all random draws, 0 to 2^32 - 1. Parts are disjoint if all clients of the task use the same seed."""


def parts_of(groups: Sequence[int], num_parts: int, skew: LabelSkew) -> list[list[int]]:
    """Distribute rows among parts.

    The parts take turns. Each draws a label from its own distribution over the labels that have rows left, and takes a
    row of that label. So the last parts aren't left with more of the unpopular labels than others.

    Args:
        groups: each row's label, as an arbitrary number.
        num_parts: number of parts, at least 1.
        skew: the label skew.

    Returns:
        Row indices by part, in random order. Every row is in exactly one part. Sizes differ by at most 1, and the
        first parts are the larger ones. The same arguments give the same parts on every machine, since NumPy freezes
        `RandomState`.

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
    """Return the bin of each value: `NUM_BINS` bins with about equally many rows, fewer bins if values repeat."""
    edges = np.unique(np.quantile(np.asarray(values), np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    return [int(bin_) for bin_ in np.digitize(np.asarray(values), edges)]


def _shares(
    of_all: npt.NDArray[np.float64], concentration: float, random: np.random.RandomState
) -> npt.NDArray[np.float64]:
    """Draw a part's distribution over the labels."""
    drawn = random.dirichlet(concentration * of_all)
    if np.isfinite(drawn).all():
        return drawn
    # The concentration is so small that every weight underflowed to 0; in the limit, a part has one label.
    only = np.zeros(len(of_all))
    only[random.choice(len(of_all), p=of_all)] = 1
    return only


def _draw(share: npt.NDArray[np.float64], left: npt.NDArray[np.float64], random: np.random.RandomState) -> int:
    """Draw a label that has rows left; if none of the part's own labels has any, draw by the remaining rows."""
    weights = np.cumsum(share * (left > 0))
    if weights[-1] <= 0:
        weights = np.cumsum(left)
    return int(np.searchsorted(weights, random.random_sample() * weights[-1], side="right"))
