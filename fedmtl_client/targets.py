"""From the cells of a label column to the targets of a task, without the rows that a setting leaves out."""

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
"""What `datasets` has instead of the index of a class for a row without a label."""


@dataclass(frozen=True)
class Targets:
    """The targets of the rows that are used."""

    indices: Sequence[int]
    """Where these rows are in their table, ascending, counted from 0."""
    values: Sequence[object]
    """Class numbers, or values, or what the task's kind makes of a cell; None each where rows have no label."""
    dropped: Mapping[str, int]
    """Numbers of rows left out, by the setting in the task's `data`."""


@dataclass(frozen=True)
class Tally:
    """What is in a label column, whether it is all as the task says or not."""

    indices: list[int] = field(default_factory=list)
    """Where the rows are that no setting leaves out, ascending, counted from 0."""
    labels: Counter[str] = field(default_factory=Counter)
    """Numbers of rows by label, or where rows have several labels, numbers of those; empty without classes."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Numbers of rows by a cell that is none of the task's labels, or no number."""
    out_of_range: Counter[float] = field(default_factory=Counter)
    """Numbers of rows by a score outside the task's `value_range`, unless such rows are left out."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Numbers of rows left out, by the setting in the task's `data`."""


def read(spec: TaskSpec, source: DataConfig, table: Table, place: str) -> Targets:
    """The targets of a table's rows.

    Args:
        spec: their task.
        source: its `drop_labels` and `out_of_range` say which rows to leave out.
        table: has the label column if the task's rows have labels.
        place: where the rows are, for messages.

    Raises:
        DataError: a cell is no target, or no row is left; the message has the row's number, from 1.
        ConfigError: the task's kind is a plug-in that raises something else than `ValueError`.
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
                raise DataError(f"{place}: row {index + 1}: {spec.label_column}: {error}") from None
            else:
                indices.append(index)
    if dropped and not indices:
        settings = " and ".join(f"tasks.{spec.name}.data.{setting}" for setting in dropped)
        raise DataError(f"{place}: no row is left: {settings} leaves out all {table.num_rows:,}")
    return Targets(indices, values, dropped)


def tally(spec: TaskSpec, source: DataConfig, table: Table) -> Tally:
    """Count what is in a table's label column; the arguments are those of `read`.

    Raises:
        ConfigError: the task's kind is a plug-in that raises something else than `ValueError`.
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
    """Whether a column's declared class names say which label a value is; else its values are class numbers.

    They are class numbers where the task doesn't name its classes but says how many there are (`labels: 3`), and the
    source has as many and gives them names that are no numbers.
    """
    are_numbered = spec.labels == tuple(map(str, range(len(class_names))))
    return not are_numbered or any(map(is_number, class_names))


class _RowDropped(Exception):
    """A setting leaves a row out."""

    def __init__(self, setting: str):
        super().__init__(setting)
        self.setting = setting


class _OutOfRange(ValueError):
    """A score is outside its task's `value_range`."""

    def __init__(self, message: str, number: float):
        super().__init__(message)
        self.number = number


class _Cells:
    """What the cells of one label column stand for."""

    def __init__(self, spec: TaskSpec, source: DataConfig, class_names: tuple[str, ...]):
        self._spec = spec
        self._kind = kind_of(spec)
        self._class_names = class_names
        self._by_name = matched_by_name(spec, class_names)
        self._dropped_labels = Values(tuple(source.drop_labels))
        self._drops_out_of_range = source.out_of_range == "drop"

    def target(self, cell: object) -> Any:
        """The target that a cell stands for.

        Raises:
            _RowDropped: a setting leaves the row out.
            _OutOfRange: it is a score outside of the task's range.
            ValueError: it is no target; the message says what was expected.
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
        """A cell with the class names that its source declares in place of indices; what is no index stays."""
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
            absent = ", which stands for no label" if named == NO_LABEL else ""
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
