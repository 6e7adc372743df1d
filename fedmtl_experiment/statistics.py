"""Statistics over seeds: means, paired differences and ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """The mean and standard deviation of values of several seeds."""

    mean: float
    std: float | None
    """The sample standard deviation, with n - 1 in the denominator; None for a single seed."""
    n: int
    """The number of seeds."""


@dataclass(frozen=True)
class Difference:
    """The paired difference of two methods: for each seed, both have the same rows and the same initial values."""

    mean: float
    standard_error: float | None
    """The standard deviation of the differences divided by the square root of their number; None for one seed."""
    n: int
    """The number of seeds that both methods have."""


def summary(values: Sequence[float]) -> Summary:
    """Return the mean and standard deviation of at least one value."""
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Return the paired difference, ours minus theirs, over the seeds that both have; None if they share no seed.

    Args:
        ours: a value for each seed.
        theirs: a value for each seed.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    of_all = summary(differences)
    error = None if of_all.std is None else of_all.std / math.sqrt(of_all.n)
    return Difference(of_all.mean, error, of_all.n)


def ratio_of_means(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    """Return the mean of ours divided by the mean of theirs, over the seeds that both have.

    None if they share no seed, or if the mean of theirs is not positive.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    below = statistics.fmean(theirs[seed] for seed in seeds)
    return statistics.fmean(ours[seed] for seed in seeds) / below if below > 0 else None
