"""What differs between two readings, and what of it may."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """What a commit changed on purpose: it may differ where that commit is in the later revision alone."""

    names: str
    """In keys, such as `contributions[].norm`; `[]` is any item."""
    since: str
    """The commit."""
    why: str
    within: float | None = None
    """How far values may be apart, as a share of the larger one; None if they are in the later revision alone."""


_POOLED, _SUMMED = "8533a08", "965226c"
_LAST_BITS = 1e-12
CHANGES = (
    Change("report.discarded", "cf6e3e0", "components that stay as they were are reported"),
    Change("contributions[].counted_examples", "64a100e", "what examples are bounded to is reported"),
    Change("report.warnings", "d76e8f2", "what makes a result doubtful is reported"),
    Change("received_reports", _POOLED, "what a metric was taken over is reported"),
    Change("trained_reports", _POOLED, "what a metric was taken over is reported"),
    Change("measured", _POOLED, "what a metric was taken over is in the results"),
    Change("trained_metrics.f1", _POOLED, "it is of all clients' rows together, no longer their mean", within=1.0),
    Change("pearson", _POOLED, "it is of sums, no longer SciPy's", within=_LAST_BITS),
    Change("results.stsb", _POOLED, "they are of pearson", within=_LAST_BITS),
    Change("pearson", _SUMMED, "it is of whole numbers, no longer floats", within=_LAST_BITS),
    Change("results.stsb", _SUMMED, "they are of pearson", within=_LAST_BITS),
)
"""What the scenarios show of these commits, and nothing else, may differ."""
RENAMED: tuple[tuple[str, str], ...] = ()
"""Names in keys as the earlier revision has them and as the later one does, with as many `[]`."""

ABSENT = object()
"""In place of a value that one side doesn't have."""
MOST_CHARACTERS = 200


@dataclass(frozen=True)
class Difference:
    """One value that isn't the same in both."""

    key: str
    a: object
    b: object

    @property
    def is_none(self) -> bool:
        """Whether both are the same to the last bit, and of one type: 1 isn't 1.0, and NaN is NaN."""
        return self.a is not ABSENT and self.b is not ABSENT and json.dumps(self.a) == json.dumps(self.b)

    def is_by(self, change: Change) -> bool:
        """Whether it is what a change says."""
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
    """What came of comparing."""

    differences: Sequence[Difference]
    """What differs and shouldn't."""
    accepted: Mapping[Change, int]
    """What may differ, and in how many values it does."""


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    renamed: Sequence[tuple[str, str]] = RENAMED,
    changes: Sequence[Change] = (),
) -> Comparison:
    """Compare two readings, key by key.

    Args:
        a: of the earlier revision.
        b: of the later one.
        renamed: what keys are called in both, as `RENAMED`.
        changes: what may differ.
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
    """Differences for people: of those whose keys differ in numbers alone, the first, and how many there are."""
    alike: dict[str, list[Difference]] = {}
    for one in differences:
        alike.setdefault(re.sub(r"\d+", "0", one.key), []).append(one)
    return [f"{some[0]}" + (f" (and {len(some) - 1} like it)" if len(some) > 1 else "") for some in alike.values()]


def flattened(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings and lists by key: `rounds.1.report.tasks[0].task`. Empty ones are values."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flattened(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from flattened(inner, f"{key}[{number}]")
    else:
        yield key, value


def _pattern(names: str) -> re.Pattern[str]:
    """What finds names within a key, `contributions[].norm` in `components[0].contributions[1].norm.x`."""
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
