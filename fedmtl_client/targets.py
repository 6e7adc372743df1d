"""Converts the cells of a label column to a task's targets, without the rows that a setting drops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmtl_client.tables import Table
from fedmtl_core import plugins
from fedmtl_core.config import DataConfig
from fedmtl_core.errors import DataError
from fedmtl_core.tasks.labels import Values, is_number, text_of
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import TaskSpec

NO_LABEL = -1
"""The value that `datasets` uses for a row without a label, instead of a class index."""


@dataclass(frozen=True)
class Targets:
    """The targets of the used rows."""

    indices: Sequence[int]
    """Indices of these rows in their table, ascending, counted from 0."""
    values: Sequence[object]
    """Class numbers, values, or the task type's own targets; None for each row without a label."""
    dropped: Mapping[str, int]
    """Number of dropped rows, by the setting in the task's `data`."""


@dataclass(frozen=True)
class Tally:
    """Statistics of a label column, including cells that contradict the task."""

    indices: list[int] = field(default_factory=list)
    """Indices of the rows that no setting drops, ascending, counted from 0."""
    labels: Counter[str] = field(default_factory=Counter)
    """Number of rows by label; label occurrences where rows have several labels; empty for a task without classes."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Number of rows by invalid cell: not one of the task's labels, or not a number."""
    out_of_range: Counter[float] = field(default_factory=Counter)
    """Number of rows by score outside the task's `value_range`, unless a setting drops these rows."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of dropped rows, by the setting in the task's `data`."""


def read(spec: TaskSpec, source: DataConfig, table: Table, place: str) -> Targets:
    """Return the targets of a table's rows.

    Args:
        spec: the rows' task.
        source: its `drop_labels` and `out_of_range` choose the rows to drop.
        table: the rows, with the label column if the task's rows have labels.
        place: the location of the rows, for messages.

    Raises:
        DataError: a cell is no target, or no row is left; the message has the row's number, from 1.
        ConfigError: the task type is a plug-in that raises something other than `ValueError`.
    """
    if not spec.is_labelled:
        return Targets(range(table.num_rows), [None] * table.num_rows, {})
    cells = _Cells(spec, source, table.class_names.get(spec.label_column, ()))
    indices: list[int] = []
    values: list[object] = []
    dropped: Counter[str] = Counter()
    with plugins.attribute_errors(f"tasks.{spec.name}.type", spec.type):
        for index, cell in enumerate(table.columns[spec.label_column]):
            try:
                values.append(cells.target(cell))
            except _RowDropped as row:
                dropped[row.setting] += 1
            except ValueError as error:
                raise DataError(
                    f"{place}: row {index + 1}: {spec.label_column}: {error}{_advice(spec, error)}"
                ) from None
            else:
                indices.append(index)
    if dropped and not indices:
        settings = " and ".join(f"tasks.{spec.name}.data.{setting}" for setting in dropped)
        raise DataError(f"{place}: no row is left: {settings} drops all {table.num_rows:,} rows")
    return Targets(indices, values, dropped)


def _advice(spec: TaskSpec, error: ValueError) -> str:
    """Return the ways to fix a cell that is none of a task's labels; empty for other cells."""
    if not spec.labels or isinstance(error, _OutOfRange):
        return ""
    key = f"tasks.{spec.name}"
    return f". Fix the row or {key}.labels, or drop such rows with {key}.data.drop_labels"


def tally(spec: TaskSpec, source: DataConfig, table: Table) -> Tally:
    """Count the contents of a table's label column; the arguments are those of `read`.

    Raises:
        ConfigError: the task type is a plug-in that raises something other than `ValueError`.
    """
    found = Tally()
    if not spec.is_labelled:
        found.indices.extend(range(table.num_rows))
        return found
    cells = _Cells(spec, source, table.class_names.get(spec.label_column, ()))
    with plugins.attribute_errors(f"tasks.{spec.name}.type", spec.type):
        for index, cell in enumerate(table.columns[spec.label_column]):
            try:
                target = cells.target(cell)
            except _RowDropped as row:
                found.dropped[row.setting] += 1
                continue
            except _OutOfRange as error:
                found.out_of_range[error.number] += 1
            except ValueError:
                found.unknown[str(cells.named(cell))] += 1
            else:
                numbers = target if isinstance(target, list) else [target]
                found.labels.update(spec.labels[int(number)] for number in numbers if spec.labels)
            found.indices.append(index)
    return found


def matched_by_name(spec: TaskSpec, class_names: Sequence[str]) -> bool:
    """Whether a column's values are matched by their declared class names; otherwise they are class numbers.

    Values are class numbers if the task gives only its number of classes (`labels: 3`), and the source declares as many
    class names, which aren't numbers.
    """
    are_numbered = spec.labels == tuple(map(str, range(len(class_names))))
    return not are_numbered or any(map(is_number, class_names))


class _RowDropped(Exception):
    """A setting drops a row."""

    def __init__(self, setting: str):
        super().__init__(setting)
        self.setting = setting


class _OutOfRange(ValueError):
    """A score is outside its task's `value_range`."""

    def __init__(self, message: str, number: float):
        super().__init__(message)
        self.number = number


class _Cells:
    """Converts the cells of one label column."""

    def __init__(self, spec: TaskSpec, source: DataConfig, class_names: tuple[str, ...]):
        self._spec = spec
        self._kind = kind_of(spec)
        self._class_names = class_names
        self._by_name = matched_by_name(spec, class_names)
        self._dropped_labels = Values(tuple(source.drop_labels))
        self._drops_out_of_range = source.out_of_range == "drop"

    def target(self, cell: object) -> Any:
        """Return the target of a cell.

        Raises:
            _RowDropped: a setting drops the row.
            _OutOfRange: the cell is a score outside of the task's range.
            ValueError: the cell is no target; the message says what was expected.
        """
        named = self.named(cell)
        if self._dropped_labels.texts and self._dropped_labels.find(text_of(named) or "") is not None:
            raise _RowDropped("drop_labels")
        is_declared = self._class_names and self._by_name
        target = self._target_of_declared(named) if is_declared else self._kind.target(cell)
        if self._spec.value_range is not None:
            self._require_in_range(target)
        return target

    def named(self, cell: object) -> object:
        """Return a cell with indices replaced by the declared class names; other values are unchanged."""
        if not self._class_names:
            return cell
        if isinstance(cell, list):
            return [self.named(one) for one in cell]
        if type(cell) is int and 0 <= cell < len(self._class_names):
            return self._class_names[cell]
        return cell

    def _target_of_declared(self, named: object) -> Any:
        declares = f"the source declares the classes {', '.join(self._class_names)}"
        if type(named) is int:
            absent = ", which means no label" if named == NO_LABEL else ""
            raise ValueError(f"expected the index of a class, got {named}{absent}; {declares}")
        try:
            return self._kind.target(named)
        except ValueError as error:
            raise ValueError(f"{error}; {declares}") from None

    def _require_in_range(self, target: object) -> None:
        lowest, highest = self._spec.value_range or (0.0, 0.0)
        for number in target if isinstance(target, list) else (target,):
            if not isinstance(number, (int, float)) or lowest <= number <= highest:
                continue
            if self._drops_out_of_range:
                raise _RowDropped("out_of_range")
            key = f"tasks.{self._spec.name}"
            raise _OutOfRange(
                f"expected a number from {lowest:g} to {highest:g} ({key}.value_range), got {number:g}; "
                f"{key}.data.out_of_range: drop leaves such rows out",
                number,
            )
