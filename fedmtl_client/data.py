"""A client's rows from a hub data set, files, a plug-in or a generator: its shard, validated and tokenized once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fedmtl_client import targets
from fedmtl_client.partition import LabelSkew, groups_of_values, parts_of
from fedmtl_client.reading import Dialect, read_files, shown
from fedmtl_client.tables import Table, class_names_in
from fedmtl_core import plugins
from fedmtl_core.config import DataConfig
from fedmtl_core.errors import ConfigError, DataError, first_line
from fedmtl_core.logs import get_logger
from fedmtl_core.model import toy
from fedmtl_core.tasks.kinds import CUT, Collate, Row, TaskKind
from fedmtl_core.tasks.labels import listing
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import TaskSpec

_SHARD_SEED = 0
"""Seed of the shuffle. All clients use the same seed, so that their shards are disjoint."""


@dataclass(frozen=True)
class Rows:
    """Texts with their labels."""

    texts: Sequence[tuple[str, ...]]
    """One or two texts per row."""
    labels: Sequence[Any]
    """Class numbers, values, or the task type's own targets; None for each row without a label."""

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int) -> Rows:
        """Return the first `count` rows; all rows if `count` is 0."""
        return Rows(self.texts[:count], self.labels[:count]) if count else self

    def select(self, numbers: Sequence[int]) -> Rows:
        """Return the rows at these indices, counted from 0, in their order."""
        return Rows([self.texts[i] for i in numbers], [self.labels[i] for i in numbers])


@dataclass(frozen=True)
class TaskData:
    """One client's rows for training and evaluation."""

    train: Rows
    validation: Rows


class RowSource(ABC):
    """A custom source of rows: a plug-in for `tasks.NAME.data.plugin`.

    A row is a mapping with the task's `text_columns` and, for a labeled task, its `label_column`; other keys are
    ignored. A label is a class's name or number, or a number. With shards, all clients must return the rows in the
    same order.

    Args:
        spec: the task.
        options: the options in `tasks.NAME.data.options`; a subclass names its own options.
    """

    def __init__(self, spec: TaskSpec, **options: Any):
        if options:
            raise TypeError(f"{type(self).__name__} has no option {next(iter(options))!r}")
        self.spec = spec

    @abstractmethod
    def train(self) -> Iterable[Mapping[str, object]]:
        """Return the training rows, such as a list of dictionaries or a `datasets.Dataset`."""

    @abstractmethod
    def validation(self) -> Iterable[Mapping[str, object]]:
        """Return the evaluation rows."""


def load_task_data(
    spec: TaskSpec, source: DataConfig | None, shard: tuple[int, int] = (1, 1), skew: LabelSkew | None = None
) -> TaskData:
    """Read a task's rows and return a client's part of them.

    Args:
        spec: the task, with its text columns, label column and labels. `fedmtl_core.tasks.labels.LabelNames` describes
            how labels are matched.
        source: the location of the rows; the task's data set on the hub if None.
        shard: `(K, N)` for the K-th of N disjoint parts, of training and of evaluation rows.
        skew: the label skew between the parts' training rows; None for no skew. Evaluation rows are never skewed, so
            that the mean over a task's clients measures the whole task.

    Raises:
        DataError: the rows don't exist, or contradict the task; the message says where.
    """
    source = _source(spec, source)
    rows: dict[str, Rows] = {}
    class_names: list[tuple[str, ...]] = []
    for split in ("train", "validation"):
        table = _split(spec, source, split)
        rows[split] = _rows(spec, source, split, table)
        class_names.append(table.class_names.get(spec.label_column, ()))
    _log_declared(spec, class_names)
    train, validation = rows["train"], rows["validation"]
    return TaskData(
        _shard(train, shard, spec.name) if skew is None else _skewed_shard(train, shard, spec, skew),
        _shard(validation, shard, spec.name),
    )


@dataclass(frozen=True)
class Survey:
    """Statistics of one split, including rows that contradict the task."""

    texts: Sequence[tuple[str, ...]]
    """The texts of the rows that no setting drops."""
    labels: Mapping[str, int]
    """Number of rows by label; label occurrences where rows have several labels; empty for a task without classes."""
    unknown: Mapping[str, int]
    """Number of rows by invalid cell: not one of the task's labels, or not a number."""
    out_of_range: Mapping[float, int]
    """Number of rows by score outside the task's `value_range`, unless a setting drops these rows."""
    dropped: Mapping[str, int]
    """Number of dropped rows, by the setting in the task's `data`."""
    class_names: tuple[str, ...]
    """The class names that the source declares for the label column; empty for most sources."""

    @property
    def num_rows(self) -> int:
        """Number of rows that no setting drops."""
        return len(self.texts)

    @property
    def num_empty(self) -> int:
        """Number of rows with an empty text."""
        return sum(any(not text.strip() for text in row) for row in self.texts)


def survey(spec: TaskSpec, source: DataConfig | None, split: Literal["train", "validation"]) -> Survey:
    """Read one split of a task's rows, all shards of it, and return its statistics.

    Raises:
        DataError: as for `load_task_data`, except for invalid labels.
    """
    source = _source(spec, source)
    table, place = _split(spec, source, split), _place(spec, source, split)
    _require_columns(spec, table, place)
    found = targets.tally(spec, source, table)
    return Survey(
        texts=_texts(spec, table, place, found.indices),
        labels=found.labels,
        unknown=found.unknown,
        out_of_range=found.out_of_range,
        dropped=found.dropped,
        class_names=table.class_names.get(spec.label_column, ()),
    )


class EncodedRows(Dataset[Row]):
    """Rows as token ids, tokenized once.

    Args:
        rows: the texts and labels.
        spec: the rows' task.
        tokenizer: a `transformers` tokenizer.
        max_length: the longest input in tokens; longer inputs are truncated, the longer text of a pair first.

    Raises:
        ConfigError: the task type can't use the tokenizer, or a plug-in's `encode` returns a wrong number of rows.
    """

    def __init__(self, rows: Rows, spec: TaskSpec, tokenizer: Any, max_length: int):
        self._kind, key = kind_of(spec), f"tasks.{spec.name}.type"
        self._kind.require_tokenizer(tokenizer)
        with plugins.attribute_errors(key, spec.type):
            columns = self._kind.encode(rows.texts, rows.labels, tokenizer, max_length) if len(rows) else {CUT: []}
        for name, values in columns.items():
            if len(values) != len(rows):
                raise ConfigError(
                    f"{key}: {spec.type}: encode() must return one value per row: expected {len(rows)} {name}, "
                    f"got {len(values)}"
                )
        self._columns = {name: values for name, values in columns.items() if name != CUT}
        self._tokenizer = tokenizer
        self._num_rows = len(rows)
        self.num_cut = sum(columns[CUT]) if CUT in columns else None
        """Number of rows truncated to `max_length`; None if the task type or its tokenizer doesn't report it."""

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> Row:
        return {name: values[index] for name, values in self._columns.items()}

    @cached_property
    def lengths(self) -> list[int] | None:
        """Number of tokens of each row; None if the task type makes no `input_ids`."""
        ids = self._columns.get("input_ids")
        return None if ids is None else [len(row) for row in ids]

    @cached_property
    def vocabulary(self) -> Tensor | None:
        """int64, ascending, the token ids that can occur in its batches; None if the task type makes other ids."""
        if "input_ids" not in self._columns or type(self._kind).collator is not TaskKind.collator:
            return None
        filled_up_with = {self._tokenizer.pad_token_id} - {None}
        return torch.tensor(sorted(filled_up_with.union(*self._columns["input_ids"])))

    def collator(self, seed: int) -> Collate:
        """Return the function that collates these rows into batches; see `TaskKind.collator`."""
        return self._kind.collator(self._tokenizer, seed)


def _source(spec: TaskSpec, source: DataConfig | None) -> DataConfig:
    """Return the location of a task's rows: its data set on the hub if the configuration names no other."""
    if source is not None:
        return source
    if spec.hub is None:
        raise DataError(
            f"tasks.{spec.name}.data: required, since {spec.name!r} has no known data set on the hub; "
            f"give it files (data: {{train: FILE, validation: FILE}}), a hub data set or a plug-in"
        )
    return DataConfig(hub=spec.hub[0], subset=spec.hub[1])


def _split(spec: TaskSpec, source: DataConfig, split: str) -> Table:
    """Read one split's rows."""
    if source.plugin:
        return _from_plugin(spec, source, split)
    if source.builtin:
        return _builtin(source.builtin, split)
    if source.hub:
        default = spec.hub_splits[0 if split == "train" else 1]
        return _from_hub(source.hub, source.subset, getattr(source, split) or default, _wanted(spec))
    return _from_files(getattr(source, split), source, spec, split)


def _place(spec: TaskSpec, source: DataConfig, split: str) -> str:
    """Return the location of a split's rows, for messages."""
    is_file = not source.builtin and not source.hub and not source.plugin
    return f"{spec.name}, {split} rows" + (f" in {shown(getattr(source, split))}" if is_file else "")


def _builtin(name: str, split: str) -> Table:
    if name not in toy.tasks():
        raise DataError(f"there is no built-in task {name!r}; expected one of {', '.join(toy.tasks())}")
    rows = toy.rows(name)[0 if split == "train" else 1]
    return Table({column: [row[column] for row in rows] for column in rows[0]})


def _from_plugin(spec: TaskSpec, source: DataConfig, split: str) -> Table:
    key, plugin = f"tasks.{spec.name}.data.plugin", source.plugin or ""
    kind = plugins.load(key, plugin, RowSource)  # type: ignore[type-abstract]
    with plugins.attribute_errors(key, plugin):
        given = getattr(kind(spec, **(source.options or {})), split)()
        rows = list(given)
    if not rows:
        raise DataError(f"{key}: {plugin}: {split}() returned no rows; expected at least one")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{key}: {plugin}: {split}(): row {number}: expected a mapping of columns, got a {type(row).__name__}"
            )
        if missing := [column for column in rows[0] if column not in row]:
            raise DataError(f"{key}: {plugin}: {split}(): row {number} has no {missing[0]!r}, which row 1 has")
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    return Table(columns, class_names_in(getattr(given, "features", None)))  # a `datasets.Dataset` has features


def _from_files(address: str, source: DataConfig, spec: TaskSpec, split: str) -> Table:
    key, dialect = f"tasks.{spec.name}.data.{split}", Dialect(source.quoting, source.header)
    try:
        return read_files(address, _wanted(spec), spec.text_columns, dialect)
    except FileNotFoundError:
        looked_for = Path(address).absolute()
        raise DataError(
            f"{key}: there is no file {address!r} (looked for {looked_for}; relative paths are resolved against the "
            f"working directory).{_where_from(spec)}"
        ) from None
    except DataError as error:
        raise DataError(f"{key}: {error}") from None


def _from_hub(name: str, subset: str | None, split: str, wanted: Sequence[str]) -> Table:
    import datasets

    try:
        return Table.of(datasets.load_dataset(name, subset, split=split), wanted)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error  # the wrapped error says more than the wrapper
        raise DataError(
            f"data set {name!r}{f' ({subset})' if subset else ''}, split {split!r}, can't be loaded from the hub "
            f"(no network, no such name, or no access): {first_line(cause)}. Instead, give the task its own files "
            f"(data: {{train: FILE, validation: FILE}}), or run with --config configs/demo.yaml, which needs no hub."
        ) from None


def _rows(spec: TaskSpec, source: DataConfig, split: str, table: Table) -> Rows:
    """Return one split's rows, checked against the task, without the rows that a setting drops."""
    place = _place(spec, source, split)
    _require_columns(spec, table, place)
    found = targets.read(spec, source, table, place)
    for setting, count in found.dropped.items():
        get_logger(task=spec.name, split=split).info(
            "rows.dropped", setting=f"data.{setting}", rows=count, of_rows=table.num_rows
        )
    return Rows(_texts(spec, table, place, found.indices), found.values)


def _log_declared(spec: TaskSpec, class_names: Iterable[tuple[str, ...]]) -> None:
    """Log the class names that a task's splits declare, once if the splits agree."""
    for names in filter(None, dict.fromkeys(class_names)):
        matched = "by name" if targets.matched_by_name(spec, names) else "by number"
        get_logger(task=spec.name).info(
            "classes.declared", declared=listing(names), labels=listing(spec.labels), matched=matched
        )


def _require_columns(spec: TaskSpec, table: Table, place: str) -> None:
    if missing := [column for column in _wanted(spec) if column not in table.columns]:
        names = ", ".join(table.available or table.columns)
        raise DataError(
            f"{place}: there is no column {missing[0]!r}; the columns are {names}. "
            f"Set tasks.{spec.name}.text_columns{f' and tasks.{spec.name}.label_column' if spec.is_labelled else ''} "
            f"to names of existing columns"
        )


def _texts(spec: TaskSpec, table: Table, place: str, indices: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the texts of the rows at these indices, counted from 0, in their order."""
    rows = list(zip(*(table.columns[column] for column in spec.text_columns), strict=True))
    if len(indices) < len(rows):
        rows = [rows[index] for index in indices]
    for index, row in zip(indices, rows, strict=True):
        for column, text in zip(spec.text_columns, row, strict=True):
            if not isinstance(text, str):
                raise DataError(f"{place}: row {index + 1}: {column}: expected text, got {text!r}")
    return rows


def _wanted(spec: TaskSpec) -> tuple[str, ...]:
    """Return the columns that a task's rows need."""
    return (*spec.text_columns, *([spec.label_column] if spec.is_labelled else []))


def _shard(rows: Rows, shard: tuple[int, int], task: str) -> Rows:
    part, whole = shard
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SHARD_SEED)).tolist()[part - 1 :: whole]
    if not order:
        raise DataError(f"{task}: shard {part}/{whole} of {len(rows)} rows is empty; use fewer shards")
    return rows.select(order)


def _skewed_shard(rows: Rows, shard: tuple[int, int], spec: TaskSpec, skew: LabelSkew) -> Rows:
    part, whole = shard
    if not all(isinstance(label, (int, float)) for label in rows.labels):
        raise DataError(f"{spec.name}: partition: the rows of a {spec.kind} have no label to distribute by")
    groups = [int(label) for label in rows.labels] if spec.labels else groups_of_values(rows.labels)
    try:
        return rows.select(parts_of(groups, whole, skew)[part - 1])
    except DataError as error:
        raise DataError(f"{spec.name}: partition: {error}") from None


def _where_from(spec: TaskSpec) -> str:
    if spec.hub is None:
        return ""
    return (
        f" Download {spec.name} from https://gluebenchmark.com/tasks, or from the hub as data set {spec.hub[0]} "
        f"({spec.hub[1]}), and save it with the columns {', '.join(_wanted(spec))}"
    )
