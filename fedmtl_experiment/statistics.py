"""The few statistics that a comparison over seeds needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Values of several seeds."""

    mean: float
    std: float | None
    """Of the sample, with n - 1; None for a single seed."""
    n: int


@dataclass(frozen=True)
class Difference:
    """Of two methods, seed by seed: both saw the same rows and began with the same values."""

    mean: float
    standard_error: float | None
    """Of that mean: the standard deviation of the differences over the root of their number; None for one seed."""
    n: int
    """Seeds that both have."""


def summary(values: Sequence[float]) -> Summary:
    """Mean and standard deviation of at least one value."""
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs over the seeds that both have; None if they share none.

    Args:
        ours: by seed.
        theirs: by seed.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    of_all = summary(differences)
    error = None if of_all.std is None else of_all.std / math.sqrt(of_all.n)
    return Difference(of_all.mean, error, of_all.n)


def ratio_of_means(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    """Mean of ours over mean of theirs, over the seeds that both have; None without any, or if theirs isn't above 0."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    below = statistics.fmean(theirs[seed] for seed in seeds)
    return statistics.fmean(ours[seed] for seed in seeds) / below if below > 0 else None
