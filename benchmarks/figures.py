"""Figures of the benchmark, and their table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """A measurement of FedMTL relative to a bound that was measured in the same run."""

    name: str
    unit: str
    ours: float
    """The median of FedMTL's measurements."""
    bound: float
    """The median of the bound's measurements."""
    ratio: float
    """The median of the pairs' ratios, FedMTL divided by the bound."""
    min: float
    """The minimum of the pairs' ratios."""
    max: float
    """The maximum of the pairs' ratios."""
    target: float | None
    """The target of the ratio; None if the figure is for information only."""
    at_most: bool
    """Whether the target is an upper limit; a lower limit otherwise."""
    met: bool | None
    pairs: int

    @classmethod
    def of_pairs(
        cls,
        name: str,
        unit: str,
        ours: Sequence[float],
        bound: Sequence[float],
        target: float | None,
        *,
        at_most: bool = False,
    ) -> Figure:
        """Return the figure of measurements that were taken alternately: ours, bound, ours, bound, …"""
        ratios = [mine / theirs for mine, theirs in zip(ours, bound, strict=True)]
        ratio = statistics.median(ratios)
        met = None if target is None else (ratio <= target if at_most else ratio >= target)
        return cls(
            name,
            unit,
            statistics.median(ours),
            statistics.median(bound),
            ratio,
            min(ratios),
            max(ratios),
            target,
            at_most,
            met,
            len(ratios),
        )

    def to_json(self) -> str:
        return json.dumps({key: _rounded(value) for key, value in asdict(self).items()})


def show(figures: Sequence[Figure], console: Console) -> None:
    """Print the figures as a table."""
    table = Table(title="FedMTL relative to the machine's bounds", title_justify="left")
    for heading in ("figure", "ours", "bound", "unit", "ratio", "min to max", "pairs", "target", "met"):
        table.add_column(heading, justify="left" if heading in ("figure", "unit") else "right")
    for one in figures:
        sign = "≤" if one.at_most else "≥"
        table.add_row(
            one.name,
            f"{one.ours:.3g}",
            f"{one.bound:.3g}",
            one.unit,
            f"{one.ratio:.2f}",
            f"{one.min:.2f} to {one.max:.2f}",
            str(one.pairs),
            "" if one.target is None else f"{sign} {one.target:g}",
            {None: "", True: "yes", False: "NO"}[one.met],
        )
    console.print(table)


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value
