"""What the rows of a new task are likely to be: its text columns, its label column, its type and its labels.

Every function is pure: the same rows give the same proposal. A person may overrule each of them.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from fedmtl_client.tables import Table
from fedmtl_core.tasks.labels import Values, number_in, text_of
from fedmtl_core.tasks.spec import METRICS_OF

MAX_CLASSES = 50
"""A label column with more different values isn't taken for classes, unless the values repeat."""
MAX_REPEATED_CLASSES = 200
"""A label column with more different values isn't taken for classes, even if the values repeat."""
ROWS_OF_A_LABEL = 3
"""Values repeat if a value has this many rows on average."""
MAX_INTEGER_CLASSES = 10
"""A label column with more different integers is taken for a regression, unless they number classes from 0."""
MAX_NUMBERED_CLASSES = 100
"""Integers from 0 without gaps are taken for the numbers of at most this many classes."""
LENGTHS = (32, 64, 128, 256, 512)
"""The values of `training.max_length` that are proposed, in tokens."""
MAX_CUT = 0.01
"""Share of the rows that the proposed `training.max_length` may cut."""
VALIDATION_SHARE = 0.2
"""Share of the rows that become evaluation rows where a task has one file."""

_SPLIT_SEED = 0
_LABEL_NAMES = (
    *("label", "labels", "class", "category", "target", "gold", "gold_label", "y", "score", "rating", "stars"),
    *("sentiment", "intent", "topic", "verdict", "is_duplicate", "similarity", "grade"),
)
_TEXT_NAMES = ("text", "sentence", "content", "body", "message", "comment", "review", "document", "utterance", "query")
_PAIRS = (
    *(("premise", "hypothesis"), ("question", "sentence"), ("query", "document"), ("first", "second")),
    *(("subject", "body"), ("subject", "text"), ("title", "body"), ("title", "text")),
)
_ID_NAMES = frozenset(["id", "idx", "index", "guid", "uuid", "row"])
_LONGEST_LABEL_WORDS = 3.0
_LONGEST_NAMED_LABEL_WORDS = 10.0
"""The limit for a column with a usual name whose values repeat."""
_MIN_TEXT_WORDS = 2.0
_MOST_UNEQUAL = 3.0
"""Two columns whose mean lengths differ by a larger factor aren't taken for a pair."""


@dataclass(frozen=True)
class _Column:
    """What is known of one column."""

    name: str
    values: Sequence[object]
    """The cells that aren't missing."""
    is_text: bool
    """Whether all cells are strings, and not all of them numbers."""
    num_rows: int

    @property
    def num_distinct(self) -> int:
        return len({str(value) for value in self.values})

    @property
    def mean_words(self) -> float:
        return sum(len(str(value).split()) for value in self.values) / max(1, len(self.values))

    @property
    def repeats(self) -> bool:
        return len(self.values) >= ROWS_OF_A_LABEL * self.num_distinct

    @property
    def is_id(self) -> bool:
        """Whether the column numbers or names its rows."""
        name = self.name.lower()
        is_named = name in _ID_NAMES or name.endswith(("_id", "unnamed: 0"))
        return is_named and self.num_distinct == self.num_rows


def propose_label_column(table: Table) -> str | None:
    """The column that is most likely to hold the labels: one with a usual name, or with few different values.

    Returns:
        None if no column looks like labels.
    """
    return next(iter(likely_label_columns(table)), None)


def likely_label_columns(table: Table) -> list[str]:
    """The columns that are most likely to hold the labels, all equally likely, the last column first."""
    scores = {name: _label_score(_column(table, name), table) for name in reversed(list(table.columns))}
    highest = max(scores.values(), default=0.0)
    return [name for name, score in scores.items() if score == highest > 0]


def matching_label_column(table: Table, labels: Sequence[str]) -> str | None:
    """The column with the most cells that are one of the given labels by name.

    Returns:
        None if no column has such a cell.
    """
    values = Values(tuple(labels))
    counts = {
        name: sum(
            (text := label_text(named(cell, table.class_names.get(name, ())))) is not None
            and values.find(text) is not None
            for cell in cells
        )
        for name, cells in table.columns.items()
    }
    best = max(counts, key=lambda name: counts[name], default="")
    return best if counts.get(best) else None


def propose_text_columns(table: Table, label_column: str | None) -> tuple[str, ...]:
    """The column that is most likely to hold the text, or two columns that are likely to be a pair of texts.

    Args:
        table: all columns.
        label_column: isn't text.

    Returns:
        Empty if no column looks like text.
    """
    columns = {name: _column(table, name) for name in table.columns if name != label_column}
    texts = [name for name, column in columns.items() if column.is_text and not column.is_id]
    if pair := _known_pair(texts):
        return pair
    lowered = {name.lower(): name for name in reversed(texts)}
    if known := [lowered[name] for name in _TEXT_NAMES if name in lowered]:
        return (known[0],)
    long = [name for name in texts if columns[name].mean_words >= _MIN_TEXT_WORDS]
    words = {name: columns[name].mean_words for name in long or texts}
    if len(long) == 2 and max(words.values()) <= _MOST_UNEQUAL * min(words.values()):
        return tuple(long)
    return (max(words, key=lambda name: words[name]),) if words else ()


def propose_type(cells: Iterable[object], class_names: Sequence[str] = ()) -> str:
    """`regression` for numbers other than a few integers and the numbers of classes; else `classification`.

    Args:
        cells: the label column's.
        class_names: those that the file declares for the column.
    """
    if class_names:
        return "classification"
    numbers: Counter[Decimal] = Counter()
    for cell in cells:
        text = label_text(cell)
        if text is None:
            continue
        number = None if isinstance(cell, bool) else number_in(text)
        if number is None:
            return "classification"
        numbers[number] += 1
    are_integers = all(number == number.to_integral_value() for number in numbers)
    are_few = are_integers and len(numbers) <= MAX_INTEGER_CLASSES
    return "classification" if are_few or _are_class_numbers(numbers) else "regression"


def may_be_classes(num_labels: int, num_rows: int) -> bool:
    """Whether a label column with so many different values in so many rows is taken for classes."""
    repeats = num_rows >= ROWS_OF_A_LABEL * num_labels
    return 2 <= num_labels <= (MAX_REPEATED_CLASSES if repeats else MAX_CLASSES)


def propose_labels(cells: Iterable[object], class_names: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the classes: in the order that the file declares; else numbers ascending, then words by alphabet.

    Args:
        cells: the label column's.
        class_names: those that the file declares for the column.
    """
    if class_names:
        return tuple(class_names)
    names: dict[str | Decimal, str] = {}
    for cell in cells:
        text = label_text(cell)
        if text is None:
            continue
        number = number_in(text)
        names.setdefault(text if number is None else number, _plain(text, number))
    numbers = sorted((key, name) for key, name in names.items() if isinstance(key, Decimal))
    return (*(name for _, name in numbers), *sorted(name for key, name in names.items() if isinstance(key, str)))


def propose_value_range(cells: Iterable[object]) -> tuple[float, float] | None:
    """The lowest and the highest label of a regression, widened to integers; None without two different integers."""
    numbers = [number for cell in cells if (number := number_in(label_text(cell) or "")) is not None]
    if not numbers:
        return None
    lowest, highest = math.floor(min(numbers)), math.ceil(max(numbers))
    return (float(lowest), float(highest)) if lowest < highest else None


def propose_metrics(type_: str, labels: Sequence[str] = ()) -> tuple[str, ...]:
    """The metrics of a task, the main one first: accuracy, with f1 for two labels; every metric for other types."""
    if type_ == "classification":
        return ("accuracy", "f1") if len(labels) == 2 else ("accuracy",)
    return METRICS_OF.get(type_, ())


def propose_max_length(lengths: Sequence[int], at_most: int | None = None) -> int:
    """The smallest usual `training.max_length` that cuts at most 1 % of the rows.

    Args:
        lengths: the rows' lengths in tokens, special tokens included.
        at_most: the longest input of the encoder; None if it isn't known.
    """
    ranked = sorted(lengths) or [0]
    needed = ranked[min(len(ranked) - 1, math.floor((1 - MAX_CUT) * len(ranked)))]
    proposed = next((length for length in LENGTHS if length >= needed), LENGTHS[-1])
    return proposed if at_most is None else max(8, min(proposed, at_most))


def split_rows(texts: Sequence[tuple[object, ...]], groups: Sequence[object]) -> tuple[list[int], list[int]]:
    """Rows to train on and rows to evaluate on: about a fifth of each group, chosen at random.

    Rows with the same texts stay on one side. The same arguments give the same rows.

    Args:
        texts: each row's.
        groups: each row's label; one value for all rows if labels aren't classes.

    Returns:
        Row numbers of either side, ascending. The second list has at least one row where two texts differ.
    """
    same: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        same[text].append(row)
    by_group: dict[object, list[list[int]]] = defaultdict(list)
    for rows in same.values():
        by_group[groups[rows[0]]].append(rows)
    chooser = random.Random(_SPLIT_SEED)
    validation: list[int] = []
    for bundles in by_group.values():
        chooser.shuffle(bundles)
        validation += [row for rows in bundles[: round(VALIDATION_SHARE * len(bundles))] for row in rows]
    if not validation and len(same) > 1:
        validation = next(reversed(same.values()))
    chosen = set(validation)
    return [row for row in range(len(texts)) if row not in chosen], sorted(chosen)


def _are_class_numbers(numbers: Mapping[Decimal, int]) -> bool:
    """Whether integers count from 0 without gaps, and each has several rows."""
    is_counted = sorted(numbers) == list(range(len(numbers)))
    return is_counted and len(numbers) <= MAX_NUMBERED_CLASSES and min(numbers.values()) > 1


def _column(table: Table, name: str) -> _Column:
    values = [value for value in table.columns[name] if label_text(value) is not None]
    are_strings = all(isinstance(value, str) for value in table.columns[name])
    is_text = are_strings and any(number_in(str(value)) is None for value in values)
    return _Column(name, values, is_text, len(table.columns[name]))


def _label_score(column: _Column, table: Table) -> float:
    """How much a column looks like labels; 0 if it doesn't."""
    are_scalars = not any(isinstance(value, (list, dict)) for value in column.values)
    is_named = column.name.lower() in _LABEL_NAMES
    longest = _LONGEST_NAMED_LABEL_WORDS if is_named and column.repeats else _LONGEST_LABEL_WORDS
    if not column.values or not are_scalars or column.is_id or column.mean_words > longest:
        return 0.0
    score = 4.0 if is_named or column.name in table.class_names else 0.0
    if may_be_classes(column.num_distinct, len(column.values)) and column.num_distinct < len(column.values):
        score += 2.0
    elif not column.is_text and column.num_distinct > 1:
        score += 1.0
    return score


def _known_pair(texts: Sequence[str]) -> tuple[str, str] | None:
    """Two columns of text with names such as `sentence1` and `sentence2`."""
    lowered = {name.lower(): name for name in reversed(texts)}
    for first, second in _PAIRS:
        if first in lowered and second in lowered:
            return lowered[first], lowered[second]
    for name in texts:
        if match := re.fullmatch(r"(.*?)(1|a)", name.lower()):
            other = match[1] + {"1": "2", "a": "b"}[match[2]]
            if match[1] and other in lowered:
                return name, lowered[other]
    return None


def named(cell: object, class_names: Sequence[str]) -> object:
    """The class name that the index of a declared class stands for; any other cell as it is."""
    return class_names[cell] if type(cell) is int and 0 <= cell < len(class_names) else cell


def label_text(cell: object) -> str | None:
    """A cell as the name of a label; None if it is missing or empty."""
    if isinstance(cell, bool):
        return str(cell).lower()
    text = text_of(cell)
    return text.strip() or None if text is not None else None


def _plain(text: str, number: Decimal | None) -> str:
    """A label's name: an integer without the decimal places that some files give it."""
    if number is None or number != number.to_integral_value() or abs(number) >= 10**15:
        return text
    return str(int(number))
