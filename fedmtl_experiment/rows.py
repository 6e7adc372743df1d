"""The rows of a setting: for training, for choosing and for reporting, the same for every method."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedmtl_client.data import Rows, TaskData
from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks.spec import TaskSpec


@dataclass(frozen=True)
class TaskRows:
    """One task's rows. No row is in two of the three."""

    train: Rows
    """Of all its clients together."""
    validation: Rows
    """Cut from the training file: what clients evaluate on in every round, and what a best round is chosen by."""
    report: Rows
    """Of the evaluation file: only what is reported comes from them."""


def draw(
    spec: TaskSpec,
    data: TaskData,
    *,
    train_rows: int | None,
    validation_rows: int,
    report_rows: int | None,
    seed: int,
) -> TaskRows:
    """Draw a task's rows.

    Args:
        spec: the task.
        data: all its rows. Those for reporting are the first ones for evaluation, whatever the seed.
        train_rows: how many to train on; all that are left if None.
        validation_rows: how many to cut from the training rows before that.
        report_rows: how many to report on; all if None.
        seed: of the drawing. With the same seed, more training rows are the fewer and further ones.

    Raises:
        ConfigError: there are fewer.
    """
    wanted = validation_rows + (train_rows or 1)
    if wanted > len(data.train):
        raise ConfigError(
            f"{spec.name}: {train_rows or 1} training and {validation_rows} validation rows were asked for; "
            f"there are {len(data.train)} to draw from"
        )
    if (report_rows or 0) > len(data.validation):
        raise ConfigError(
            f"{spec.name}: {report_rows} rows for reporting were asked for; its evaluation file has "
            f"{len(data.validation)} rows"
        )
    random = np.random.RandomState((seed + zlib.crc32(spec.name.encode())) % 2**32)
    order = random.permutation(len(data.train)).tolist()
    end = None if train_rows is None else validation_rows + train_rows
    return TaskRows(
        train=data.train.select(order[validation_rows:end]),
        validation=data.train.select(order[:validation_rows]),
        report=data.validation.head(report_rows or 0),
    )


def without_texts(data: TaskData, evaluated: Iterable[Rows]) -> TaskData:
    """A task's data without the training rows that have a text of other tasks' rows in them.

    Texts are the same if their words are, whatever their case and punctuation.
    """
    known = {_words(text) for rows in evaluated for texts in rows.texts for text in texts} - {""}
    kept = [row for row, texts in enumerate(data.train.texts) if known.isdisjoint(map(_words, texts))]
    return replace(data, train=data.train.select(kept))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def write_jsonl(path: Path, spec: TaskSpec, rows: Rows) -> None:
    """Write rows as a client reads them: columns as the task names them, classes by their names."""
    with path.open("w", encoding="utf-8") as file:
        for texts, label in zip(rows.texts, rows.labels, strict=True):
            columns = dict(zip(spec.text_columns, texts, strict=True))
            if spec.is_labelled:
                columns[spec.label_column] = spec.labels[int(label)] if spec.labels else label
            file.write(json.dumps(columns, ensure_ascii=False) + "\n")


def trivial_baseline(spec: TaskSpec, labels: Sequence[float]) -> float | None:
    """What the main metric comes to without reading a text: accuracy of the most frequent class, and no correlation.

    None for metrics that have none.
    """
    if spec.main_metric == "accuracy":
        return float(np.bincount(np.asarray(labels, dtype=np.int64)).max() / len(labels))
    return 0.0 if spec.main_metric in ("pearson", "spearman", "matthews") else None
