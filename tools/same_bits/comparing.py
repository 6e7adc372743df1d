"""Compares two readings, and separates expected differences from unexpected ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """An intended change of a commit. A difference is expected if only the later revision contains the commit."""

    names: str
    """The names in the keys of changed values, such as `contributions[].norm`; `[]` stands for any item."""
    since: str
    """The commit."""
    why: str
    within: float | None = None
    """The maximum difference as a share of the larger value; None for values that only the later revision has."""


_POOLED, _SUMMED = "8533a08", "965226c"
_LAST_BITS = 1e-12
CHANGES = (
    Change("report.discarded", "cf6e3e0", "reports list the components that were discarded"),
    Change("contributions[].counted_examples", "64a100e", "reports have the limited number of examples"),
    Change("report.warnings", "d76e8f2", "reports have warnings about doubtful results"),
    Change("report.moved_by", "7aa45d6", "reports name the settings that regrouped layers"),
    Change("received_reports", _POOLED, "reports have the examples and clients of each metric"),
    Change("trained_reports", _POOLED, "reports have the examples and clients of each metric"),
    Change("measured", _POOLED, "results have the examples and clients of each metric"),
    Change("trained_metrics.f1", _POOLED, "F1 is computed over all clients' rows, no longer averaged", within=1.0),
    Change("pearson", _POOLED, "Pearson correlation is computed from sums, no longer by SciPy", within=_LAST_BITS),
    Change("results.stsb", _POOLED, "the results of stsb are Pearson correlations", within=_LAST_BITS),
    Change("pearson", _SUMMED, "Pearson correlation is computed from integers, no longer floats", within=_LAST_BITS),
    Change("results.stsb", _SUMMED, "the results of stsb are Pearson correlations", within=_LAST_BITS),
)
"""The expected differences in the scenarios. All other differences are unexpected."""
RENAMED: tuple[tuple[str, str], ...] = ()
"""Pairs of names in keys, as in the earlier and the later revision, with the same number of `[]`."""

ABSENT = object()
"""Stands for a value that one side does not have."""
MOST_CHARACTERS = 200


@dataclass(frozen=True)
class Difference:
    """A key with its values in both readings."""

    key: str
    a: object
    b: object

    @property
    def is_none(self) -> bool:
        """Whether both values have the same type and bits: 1 differs from 1.0, and NaN equals NaN."""
        return self.a is not ABSENT and self.b is not ABSENT and json.dumps(self.a) == json.dumps(self.b)

    def is_by(self, change: Change) -> bool:
        """Return whether a change explains the difference."""
        if not _pattern(change.names).search(self.key):
            return False
        if change.within is None:
            return self.a is ABSENT
        a, b = self.a, self.b
        if not (isinstance(a, float) and isinstance(b, float)):
            return False
        return abs(a - b) <= change.within * max(abs(a), abs(b))

    def __str__(self) -> str:
        if self.a is ABSENT:
            return f"only in B: {self.key}: {_shown(self.b)}"
        if self.b is ABSENT:
            return f"only in A: {self.key}: {_shown(self.a)}"
        return f"{self.key}: A has {_shown(self.a)}, B has {_shown(self.b)}"


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison."""

    differences: Sequence[Difference]
    """The unexpected differences."""
    accepted: Mapping[Change, int]
    """The number of differing values for each expected change."""


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    renamed: Sequence[tuple[str, str]] = RENAMED,
    changes: Sequence[Change] = (),
) -> Comparison:
    """Compare two readings, key by key.

    Args:
        a: the reading of the earlier revision.
        b: the reading of the later revision.
        renamed: the renamed keys, in the format of `RENAMED`.
        changes: the expected changes.
    """
    mine = {_renamed(key, renamed): value for key, value in flattened(a)}
    theirs = dict(flattened(b))
    differences, accepted = [], Counter[Change]()
    for key in dict.fromkeys([*mine, *theirs]):
        one = Difference(key, mine.get(key, ABSENT), theirs.get(key, ABSENT))
        if one.is_none:
            continue
        if change := next((change for change in changes if one.is_by(change)), None):
            accepted[change] += 1
        else:
            differences.append(one)
    return Comparison(differences, accepted)


def summarized(differences: Sequence[Difference]) -> list[str]:
    """Return differences as text. Keys that differ only in numbers are grouped: the first one, and their count."""
    alike: dict[str, list[Difference]] = {}
    for one in differences:
        alike.setdefault(re.sub(r"\d+", "0", one.key), []).append(one)
    return [f"{some[0]}" + (f" (and {len(some) - 1} like it)" if len(some) > 1 else "") for some in alike.values()]


def flattened(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings and lists with keys such as `rounds.1.report.tasks[0].task`.

    Empty mappings and lists are values.
    """
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flattened(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from flattened(inner, f"{key}[{number}]")
    else:
        yield key, value


def _pattern(names: str) -> re.Pattern[str]:
    """Return a pattern that finds names in a key: `contributions[].norm` in `components[0].contributions[1].norm.x`."""
    return re.compile(r"(?<![^.])" + re.escape(names).replace(r"\[\]", r"\[(\d+)\]") + r"(?![^.\[])")


def _renamed(key: str, renamed: Sequence[tuple[str, str]]) -> str:
    for old, new in renamed:
        if found := _pattern(old).search(key):
            parts = new.split("[]")
            numbers = [*(f"[{number}]" for number in found.groups()), ""]
            name = "".join(part + number for part, number in zip(parts, numbers, strict=True))
            key = key[: found.start()] + name + key[found.end() :]
    return key


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
