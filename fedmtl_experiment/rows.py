"""Draw a setting's training, validation and reported rows, which are the same for every method."""

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
    """One task's rows; the parts are disjoint."""

    train: Rows
    """Training rows of all clients together."""
    validation: Rows
    """Rows of the training file on which clients evaluate in every round, and by which best rounds are chosen."""
    report: Rows
    """Rows of the evaluation file, used for reported metrics only."""
    held_back: Rows | None = None
    """Rows of the training file, used to confirm a choice only; None if none are held back."""


def draw(
    spec: TaskSpec,
    data: TaskData,
    *,
    train_rows: int | None,
    validation_rows: int,
    report_rows: int | None,
    seed: int,
    held_back_rows: int | None = None,
) -> TaskRows:
    """Draw a task's rows.

    Args:
        spec: the task.
        data: all rows of the task. The reported rows are the first rows of its evaluation file for every seed.
        train_rows: number of training rows; all remaining rows of the training file if None.
        validation_rows: number of validation rows, drawn from the training file before the training rows.
        report_rows: number of reported rows; all rows of the evaluation file if None.
        seed: seed of the drawing. With the same seed, a larger number of training rows includes the smaller one's rows.
        held_back_rows: number of held-back rows; none if None. They are the same for every number of training rows.

    Raises:
        ConfigError: the files have fewer rows than requested.
    """
    held_back = held_back_rows or 0
    if validation_rows + (train_rows or 1) + held_back > len(data.train):
        counts = f"{train_rows or 1} training and {validation_rows} validation rows"
        counts += f" and {held_back} held-back rows" if held_back else ""
        raise ConfigError(f"{spec.name}: {counts} are requested, but the training file has {len(data.train)} rows")
    if (report_rows or 0) > len(data.validation):
        raise ConfigError(
            f"{spec.name}: {report_rows} rows to report on are requested, but the evaluation file has "
            f"{len(data.validation)} rows"
        )
    random = np.random.RandomState((seed + zlib.crc32(spec.name.encode())) % 2**32)
    order = random.permutation(len(data.train)).tolist()
    start_held_back = len(order) - held_back
    end = start_held_back if train_rows is None else validation_rows + train_rows
    return TaskRows(
        train=data.train.select(order[validation_rows:end]),
        validation=data.train.select(order[:validation_rows]),
        report=data.validation.head(report_rows or 0),
        held_back=data.train.select(order[start_held_back:]) if held_back else None,
    )


def without_texts(data: TaskData, evaluated: Iterable[Rows]) -> TaskData:
    """Return a task's data without the training rows that contain a text of the evaluated rows.

    Two texts are equal if their words are equal, ignoring case and punctuation.
    """
    known = {_words(text) for rows in evaluated for texts in rows.texts for text in texts} - {""}
    kept = [row for row, texts in enumerate(data.train.texts) if known.isdisjoint(map(_words, texts))]
    return replace(data, train=data.train.select(kept))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def write_jsonl(path: Path, spec: TaskSpec, rows: Rows) -> None:
    """Write rows in the format that clients read: the task's column names, and class names as labels."""
    with path.open("w", encoding="utf-8") as file:
        for texts, label in zip(rows.texts, rows.labels, strict=True):
            columns = dict(zip(spec.text_columns, texts, strict=True))
            if spec.is_labelled:
                columns[spec.label_column] = spec.labels[int(label)] if spec.labels else label
            file.write(json.dumps(columns, ensure_ascii=False) + "\n")


def trivial_baseline(spec: TaskSpec, labels: Sequence[float]) -> float | None:
    """Return the main metric of the trivial baseline: the share of the most frequent class, or a correlation of 0.

    None for other metrics.
    """
    if spec.main_metric == "accuracy":
        return float(np.bincount(np.asarray(labels, dtype=np.int64)).max() / len(labels))
    return 0.0 if spec.main_metric in ("pearson", "spearman", "matthews") else None
