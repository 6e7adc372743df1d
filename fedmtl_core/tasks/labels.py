"""Matches the cells of a label column to classes.

Cells are compared with class names by value, since files spell one value in many ways. pandas writes the integers of a
column with missing values as `1.0`, spreadsheets pad with blanks, and JSON and Parquet have their own numbers and
booleans.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any

MAX_SHOWN = 20
"""Messages show at most this many labels."""

TRUTH_PAIRS = (("true", "false"), ("yes", "no"), ("on", "off"), ("t", "f"), ("y", "n"), ("1", "0"))
"""Pairs of labels that mean true and false, in any case; the last pair only if a task has no other label. PostgreSQL
accepts the same words as booleans."""

_NUMERAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_CLASS_NUMBER = re.compile(r"(0|[1-9][0-9]*)(?:\.0*)?")
_INTEGER = re.compile(r"[0-9]{1,18}")
_MISSING = frozenset({"none", "nan", "nat", "<na>"})
_MAX_REMEMBERED = 65_536
_MAX_SHOWN_CHARACTERS = 80


def is_number(text: str) -> bool:
    """Whether a text is a number in decimal notation, without digit separators, `nan` and `inf`."""
    return _NUMERAL.fullmatch(text.strip()) is not None


def number_in(text: str) -> Decimal | None:
    """Return the exact value of a text that is a number; None if it is none."""
    try:
        return Decimal(text.strip()) if is_number(text) else None
    except InvalidOperation:  # the exponent has too many digits
        return None


def text_of(cell: Any) -> str | None:
    """Return a cell as text; None for a missing value: None, a NaN, or pandas' `NA` and `NaT`."""
    if isinstance(cell, str):
        return cell
    text = str(cell)
    if text.lower() in _MISSING:
        return None
    if getattr(cell, "ndim", None) == 0 and number_in(text) is None:  # a NumPy or PyTorch scalar
        return str(cell.item())
    return text


def listing(names: Sequence[str]) -> str:
    """Format labels for a message; long lists are shortened."""
    more = f", … ({len(names):,} in all)" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more


@dataclass(frozen=True)
class Values:
    """Texts that can be found by value.

    Two texts have the same value if they are equal, are equal without surrounding white space, or spell the same
    number.
    """

    texts: tuple[str, ...]

    def find(self, text: str) -> int | None:
        """Return the index of the text that has the same value; None if there is none."""
        index = self._by_text.get(text)
        if index is None:
            index = self._by_text.get(text.strip())
        if index is None and self._by_number and (number := number_in(text)) is not None:
            index = self._by_number.get(number)
        return index

    def first_repeated(self) -> tuple[str, str] | None:
        """Return the first two texts that have the same value; None if all differ."""
        seen: dict[str | Decimal, str] = {}
        for text in self.texts:
            number = number_in(text)
            value = text.strip() if number is None else number
            if value in seen:
                return seen[value], text
            seen[value] = text
        return None

    @cached_property
    def has_numbers(self) -> bool:
        """Whether a text spells a number."""
        return bool(self._by_number)

    @cached_property
    def _by_text(self) -> Mapping[str, int]:
        return {key: index for index, text in enumerate(self.texts) for key in (text, text.strip())}

    @cached_property
    def _by_number(self) -> Mapping[Decimal, int]:
        numbers = ((number_in(text), index) for index, text in enumerate(self.texts))
        return {number: index for number, index in numbers if number is not None}


@dataclass(frozen=True)
class LabelNames:
    """The names of a task's classes, in the order of class numbers, and the meaning of cells.

    A cell is a name by its value (see `Values`). A cell that is no name may be a boolean, for labels that mean true and
    false, or a class number, counted from 0. Numbers that could mean something else aren't accepted as class numbers:

    * if a label is a number;
    * if the number occurs in another label (`1` in `1 star`);
    * if the two labels mean true and false in the opposite order of 1 and 0.
    """

    names: tuple[str, ...]
    _known: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Class numbers of earlier texts."""

    def number_of(self, cell: object) -> int:
        """Return the class number of a cell.

        Raises:
            ValueError: the cell means no class, or could mean two; the message says what was expected and received.
        """
        text = cell if isinstance(cell, str) else text_of(cell)
        number = self._known.get(text) if text is not None else None
        if number is not None:
            return number
        number = None if text is None else self._find(text)
        if text is None or number is None:
            raise ValueError(self._refusal(cell, text))
        if len(self._known) < _MAX_REMEMBERED:
            self._known[text] = number
        return number

    def _find(self, text: str) -> int | None:
        number = self._values.find(text)
        if number is None:
            number = self._truth.get(text.strip().lower())
        if number is None and self._has_class_numbers:
            number = self._as_class_number(text)
            if number is not None and self._labels_with.get(number, number) != number:
                number = None  # the cell may mean the label in which the number occurs
        return number

    def _as_class_number(self, text: str) -> int | None:
        """Return the class of a number from 0, such as `1` or `1.0`; None if out of range or in another form."""
        match = _CLASS_NUMBER.fullmatch(text.strip())
        if match is None or len(match[1]) > len(str(len(self.names))):
            return None
        number = int(match[1])
        return number if number < len(self.names) else None

    def _refusal(self, cell: object, text: str | None) -> str:
        """Return the error message for a cell that means no class."""
        numbers = f", or a number from 0 to {len(self.names) - 1}" if self._has_class_numbers else ""
        expected = f"expected one of {listing(self.names)}{numbers}, got {_cut(repr(cell))}"
        if text is None:
            return f"{expected}, a missing value"
        if text.strip().lower() in ("true", "false"):
            return f"{expected}; no pair of labels means true and false"
        other = self._as_class_number(text)
        if other is None:
            return expected
        as_number = f"as a class number, counted from 0, it would be {self.names[other]!r}"
        if self._has_class_numbers:
            inner = self.names[self._labels_with[other]]
            return f"{expected}: it is the number in {inner!r}, {as_number}. Write the label's name instead"
        if self._values.has_numbers:
            return f"{expected}: it is no label's name, {as_number}. Labels that are numbers are matched by name only"
        truth = self.names[self._truth["true" if other else "false"]]
        return f"{expected}: as a boolean it would be {truth!r}, {as_number}. Write the label's name instead"

    @cached_property
    def _values(self) -> Values:
        return Values(self.names)

    @cached_property
    def _truth(self) -> Mapping[str, int]:
        """The class numbers of `true` and `false`; empty unless exactly one pair of labels means them."""
        lowered = Values(tuple(name.lower() for name in self.names))
        if lowered.first_repeated():
            return {}
        found = []
        for words in TRUTH_PAIRS if len(self.names) == 2 else TRUTH_PAIRS[:-1]:
            true, false = map(lowered.find, words)
            if true is not None and false is not None:
                found.append({"true": true, "false": false})
        return found[0] if len(found) == 1 else {}

    @cached_property
    def _labels_with(self) -> Mapping[int, int]:
        """By number, the index of the only label that contains it, such as the label `4 stars` for 4."""
        found: dict[int, set[int]] = {}
        for index, name in enumerate(self.names):
            for digits in _INTEGER.findall(name):
                found.setdefault(int(digits), set()).add(index)
        return {number: min(indices) for number, indices in found.items() if len(indices) == 1}

    @cached_property
    def _has_class_numbers(self) -> bool:
        """Whether a number that is no name is a class number."""
        swapped = len(self.names) == 2 and self._truth == {"true": 0, "false": 1}
        return not self._values.has_numbers and not swapped


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[:_MAX_SHOWN_CHARACTERS]}…"
