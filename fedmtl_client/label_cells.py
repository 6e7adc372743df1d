"""The cells of a label column in several files: their names, and the cells that stand for no label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedmtl_client.proposals import label_text, named
from fedmtl_client.tables import Table
from fedmtl_core.tasks.labels import Values, number_in

MISSING_WORDS = frozenset(["nan", "n/a", "na", "none", "null", "#n/a", "<na>"])
"""Words, in lower case, that programs write for a missing value."""
_NO_LABEL = -1
"""As `fedmtl_client.targets.NO_LABEL`, whose module imports PyTorch."""


@dataclass(frozen=True)
class LeftOut:
    """Rows without a label."""

    num_rows: int
    cells: tuple[str, ...]
    """The values of `drop_labels` that leave the rows out."""


def declared_names(tables: Sequence[Table], column: str) -> tuple[str, ...]:
    """Return the class names that all files declare for a column; empty if they declare none, or different ones."""
    first, *others = (table.class_names.get(column, ()) for table in tables)
    return first if all(names == first for names in others) else ()


def label_cells(tables: Sequence[Table], column: str) -> list[object]:
    """Return the cells by class name, None for a missing label.

    A word such as `NaN` is a missing label if all other cells are numbers.
    """
    cells: list[object] = []
    for table in tables:
        names = table.class_names.get(column, ())
        cells += [None if names and cell == _NO_LABEL else named(cell, names) for cell in table.columns[column]]
    others = [text for cell in cells if (text := label_text(cell)) is not None and not _is_missing_word(text)]
    if not others or any(number_in(text) is None for text in others):
        return cells
    return [None if _is_missing_word(label_text(cell) or "") else cell for cell in cells]


def missing_words(cells: Sequence[object]) -> Counter[str]:
    """Count the rows of each cell that is a word such as `NaN`."""
    return Counter(text for cell in cells if (text := label_text(cell)) is not None and _is_missing_word(text))


def left_out(tables: Sequence[Table], column: str, labels: Sequence[str]) -> LeftOut:
    """Return the rows without a label.

    Args:
        tables: the rows.
        column: the label column.
        labels: the task's; a word such as `NaN` that is one of them is a label.
    """
    known, found = Values(tuple(labels)), Counter[str]()
    for table in tables:
        names = table.class_names.get(column, ())
        for cell in table.columns[column]:
            text = label_text(named(cell, names))
            if text is None:
                found[""] += 1
            elif (names and cell == _NO_LABEL) or (_is_missing_word(text) and known.find(text) is None):
                found[text] += 1
    values = set(found) | ({""} if str(_NO_LABEL) in found else set())  # copies of rows have no number for it
    return LeftOut(found.total(), tuple(sorted(values)))


def _is_missing_word(text: str) -> bool:
    return text.lower() in MISSING_WORDS
