"""Label columns as files have them: which class, which score, which rows are left out."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from fedmtl_client.data import load_task_data, survey
from fedmtl_core.config import DataConfig
from fedmtl_core.errors import DataError
from fedmtl_core.tasks import TaskSpec


def spec_of(*labels: str) -> TaskSpec:
    return TaskSpec("t", "classification" if labels else "regression", ("text",), "label", labels)


def written(folder: Path, ending: str, labels: list[object]) -> DataConfig:
    """A file of as many rows, written by pandas; the texts are the row numbers from 1."""
    frame = pandas.DataFrame({"text": [f"row {number}" for number in range(1, len(labels) + 1)], "label": labels})
    path = folder / f"rows{ending}"
    match ending:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".parquet":
            frame.to_parquet(path)
    return DataConfig(train=str(path), validation=str(path))


def by_row(spec: TaskSpec, source: DataConfig) -> list[object]:
    """The targets in the file's order."""
    rows = load_task_data(spec, source).train
    targets = {int(text.removeprefix("row ")): target for (text,), target in zip(rows.texts, rows.labels, strict=True)}
    return [targets[number] for number in sorted(targets)]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("labels", "cells", "expected"),
    [
        (("true", "false"), [True, True, True, False], ["true", "true", "true", "false"]),
        (("yes", "no"), [True, False], ["yes", "no"]),
        (("1", "0"), [True, False, True], ["1", "0", "1"]),
        (("1", "2", "3"), [1.0, 2.0, 1.0], ["1", "2", "1"]),
        (("5", "4", "3", "2", "1", "0"), [0.0, 5.0, 3.0], ["0", "5", "3"]),
        (("1", "2", "3"), [" 1", "2 ", "03"], ["1", "2", "3"]),
        (("0", "1", "2"), [0.0, 2.0, 1.0], ["0", "2", "1"]),
        (("negative", "positive"), [1.0, 0.0], ["positive", "negative"]),
    ],
)
def test_a_column_means_the_same_classes_in_every_kind_of_file(ending, labels, cells, expected, tmp_path):
    spec, source = spec_of(*labels), written(tmp_path, ending, cells)
    assert [labels[number] for number in by_row(spec, source)] == expected
    assert survey(spec, source, "train").labels == {label: expected.count(label) for label in expected}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("labels", "cells", "message"),
    [
        (("spam", "ham"), [True, False], r"row 1: label: expected one of spam, ham, .*no pair of labels means true"),
        (("1", "2", "3"), [1, 0], r"row 2: label: expected one of 1, 2, 3, got '?0'?: .* it would be '1'"),
        (("true", "false"), [1, 0], r"row 1: label: .*as a boolean it would be 'true', as a class number"),
        (tuple(f"class {i}" for i in range(12)), ["1_0"], r"row 1: label: expected one of .*, got '1_0'$"),
    ],
)
def test_a_column_that_could_mean_other_classes_is_refused_in_every_kind_of_file(
    ending, labels, cells, message, tmp_path
):
    source = written(tmp_path, ending, cells)
    with pytest.raises(DataError, match=rf"^t, train rows in .*rows{ending}: {message}"):
        load_task_data(spec_of(*labels), source)
    assert sum(survey(spec_of(*labels), source, "train").unknown.values()) >= 1
