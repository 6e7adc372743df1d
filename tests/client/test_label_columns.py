"""Label columns as files have them: which class, which score, which rows are left out."""

from __future__ import annotations

from pathlib import Path

import datasets
import pandas
import pytest
from structlog.testing import capture_logs

from fedmtl_client.data import load_task_data, survey
from fedmtl_client.doctor import judge
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.errors import ConfigError, DataError
from fedmtl_core.runtime.doctor import Level
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.registry import traits_of
from fedmtl_core.tasks.spec import TaskSpec

NLI = ("entailment", "neutral", "contradiction")


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
    targets = {
        int(text.removeprefix("row ")): target for (text, *_), target in zip(rows.texts, rows.labels, strict=True)
    }
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
        (tuple(f"class {i}" for i in range(12)), ["1_0"], r"row 1: label: expected one of .*, got '1_0'\. Fix"),
    ],
)
def test_a_column_that_could_mean_other_classes_is_refused_in_every_kind_of_file(
    ending, labels, cells, message, tmp_path
):
    source = written(tmp_path, ending, cells)
    with pytest.raises(DataError, match=rf"^t, train rows in .*rows{ending}: {message}"):
        load_task_data(spec_of(*labels), source)
    assert sum(survey(spec_of(*labels), source, "train").unknown.values()) >= 1


# Class names that the file declares.


def declaring(folder: Path, names: tuple[str, ...], values: list[object], spec: TaskSpec) -> DataConfig:
    """A Parquet file as `datasets` writes it, with these names of the values; the texts are the row numbers from 1."""
    texts = [f"row {number}" for number in range(1, len(values) + 1)]
    nested = any(isinstance(value, list) for value in values)
    label = datasets.List(datasets.ClassLabel(names=list(names))) if nested else datasets.ClassLabel(names=list(names))
    columns = dict.fromkeys(spec.text_columns, texts)
    features = datasets.Features({**dict.fromkeys(columns, datasets.Value("string")), spec.label_column: label})
    path = folder / "rows.parquet"
    datasets.Dataset.from_dict({**columns, spec.label_column: values}, features=features).to_parquet(path)
    return DataConfig(train=str(path), validation=str(path))


@pytest.mark.parametrize("order", [NLI, ("contradiction", "neutral", "entailment"), ("neutral", *NLI[::2])])
def test_a_files_own_class_names_say_which_label_a_number_is(order, tmp_path):
    spec = spec_of(*NLI)
    source = declaring(tmp_path, order, [0, 1, 2, 0], spec)
    assert [NLI[number] for number in by_row(spec, source)] == [*order, order[0]]
    assert survey(spec, source, "train").labels == {order[0]: 2, order[1]: 1, order[2]: 1}


def test_the_declared_order_is_logged_once_and_shown_by_the_doctor(tmp_path):
    spec = spec_of(*NLI)
    source = declaring(tmp_path, ("contradiction", "neutral", "entailment"), [0, 1, 2], spec)
    with capture_logs() as logs:
        load_task_data(spec, source)
    assert [one for one in logs if one["event"] == "classes.declared"] == [
        {
            "event": "classes.declared",
            "log_level": "info",
            "task": "t",
            "declared": "contradiction, neutral, entailment",
            "labels": "entailment, neutral, contradiction",
            "matched": "by name",
        }
    ]
    found = list(judge(spec, survey(spec, source, "train"), "train rows", (1, 1)))
    assert {one.level for one in found} == {Level.ok}
    assert found[1].found == "the source declares the classes contradiction, neutral, entailment; matched by name"


def test_a_declared_name_that_is_no_label_is_refused_with_both_lists(tmp_path):
    spec = spec_of("spam", "ham")
    source = declaring(tmp_path, ("ham", "junk"), [0, 1], spec)
    with pytest.raises(
        DataError,
        match=r"row 2: label: expected one of spam, ham, or a number from 0 to 1, got 'junk'; "
        r"the source declares the classes ham, junk\. Fix",
    ):
        load_task_data(spec, source)
    assert survey(spec, source, "train").unknown == {"junk": 1}


def test_declared_names_that_no_row_has_are_no_error(tmp_path):
    spec = spec_of("b", "c")
    assert by_row(spec, declaring(tmp_path, ("a", "b", "c"), [1, 2, 1], spec)) == [0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (("1", "2", "3"), ("3", "2", "1"), [2, 1, 0]),
        (("0", "1", "2"), ("0", "1", "2"), [0, 1, 2]),
        (("0", "1", "2"), ("2", "1", "0"), [2, 1, 0]),
        (("0", "1", "2"), ("bad", "fair", "good"), [0, 1, 2]),  # `labels: 3` says how many there are
        (("yes", "no", "maybe"), ("False", "True", "maybe"), [1, 0, 2]),
    ],
)
def test_declared_names_are_matched_by_value_or_by_number_where_labels_are_a_count(labels, names, expected, tmp_path):
    spec = spec_of(*labels)
    assert by_row(spec, declaring(tmp_path, names, [0, 1, 2], spec)) == expected


def test_a_count_of_labels_other_than_the_number_of_declared_names_is_refused(tmp_path):
    spec = spec_of("0", "1", "2")
    with pytest.raises(
        DataError, match=r"row 1: label: expected one of 0, 1, 2, got 'neg'; .* the classes neg, pos\. Fix"
    ):
        load_task_data(spec, declaring(tmp_path, ("neg", "pos"), [0, 1], spec))


def test_scores_are_the_declared_names_where_these_are_numbers(tmp_path):
    spec = spec_of()
    assert by_row(spec, declaring(tmp_path, ("1", "2.5", "4"), [2, 1, 0], spec)) == [4.0, 2.5, 1.0]
    with pytest.raises(DataError, match=r"row 1: label: expected a finite number, got 'neg'; .* the classes neg, pos$"):
        load_task_data(spec, declaring(tmp_path, ("neg", "pos"), [0, 1], spec))


GLUE = {
    "sst2": ("negative", "positive"),
    "qqp": ("not_duplicate", "duplicate"),
    "mrpc": ("not_equivalent", "equivalent"),
    "cola": ("unacceptable", "acceptable"),
    "rte": ("entailment", "not_entailment"),
    "qnli": ("entailment", "not_entailment"),
    "mnli": NLI,
}
"""As `nyu-mll/glue` on the hub declares them."""


@pytest.mark.parametrize("task", GLUE)
def test_the_glue_presets_take_the_hubs_sets_and_refuse_or_drop_rows_without_a_label(task, tmp_path):
    spec, numbers = PRESETS[task], list(range(len(GLUE[task])))
    assert by_row(spec, declaring(tmp_path, GLUE[task], numbers, spec)) == numbers
    source = declaring(tmp_path, GLUE[task], [*numbers, -1], spec)
    with pytest.raises(DataError, match=rf"row {len(numbers) + 1}: label: .* got -1, which means no label; "):
        load_task_data(spec, source)
    assert by_row(spec, source.model_copy(update={"drop_labels": ["-1"]})) == numbers


def test_hub_sets_are_matched_by_name_as_files_are(tmp_path, monkeypatch):
    spec = spec_of(*NLI)
    path = declaring(tmp_path, ("contradiction", "neutral", "entailment"), [0, 1, 2], spec).train
    on_hub = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: on_hub)
    assert by_row(spec, DataConfig(hub="somebody/nli")) == [2, 1, 0]


def test_a_plug_in_that_gives_a_dataset_has_its_class_names_matched(tmp_path, monkeypatch):
    spec = spec_of(*NLI)
    path = declaring(tmp_path, ("contradiction", "neutral", "entailment"), [0, 1, 2], spec).train
    (tmp_path / "own_nli.py").write_text(
        "import datasets\n"
        "from fedmtl_client.data import RowSource\n"
        "class Nli(RowSource):\n"
        f"  def train(self): return datasets.Dataset.from_parquet({path!r}, cache_dir={str(tmp_path)!r})\n"
        "  validation = train\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert by_row(spec, DataConfig(plugin="own_nli:Nli")) == [2, 1, 0]


def test_tags_of_words_are_matched_by_name_in_kinds_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_tags.py").write_text(
        "from fedmtl_core.tasks.kinds import Classification, TaskKind\n"
        "class Tags(Classification):\n"
        "  name = 'own_tags'\n"
        "  def target(self, value): return [TaskKind.target(self, one) for one in value]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    traits = traits_of("t", "own_tags:Tags")
    spec = TaskSpec("t", "own_tags:Tags", ("text",), "label", ("O", "B", "I"), traits=traits)
    assert by_row(spec, declaring(tmp_path, ("B", "I", "O"), [[2, 0, 1], [], [0]], spec)) == [[0, 1, 2], [], [1]]


# Rows that a setting leaves out.


@pytest.mark.parametrize(
    ("labels", "cells", "drop", "kept"),
    [
        (NLI, ["neutral", "-", "entailment", " - "], ["-"], [1, 0]),
        (NLI, ["neutral", "", "entailment", None], [""], [1, 0]),
        (("bad", "good"), [0, -1, 1, -1], ["-1"], [0, 1]),
        (("bad", "good"), [0.0, -1.0, 1.0], [-1], [0, 1]),
        ((), [2.5, 99, 99.0, 3], ["99"], [2.5, 3.0]),
        ((), [2.5, None, 3], [""], [2.5, 3.0]),
        (("a", "b", "c"), ["a", "c", "b"], ["c"], [0, 1]),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_rows_with_a_dropped_label_are_left_out_counted_and_logged(ending, labels, cells, drop, kept, tmp_path):
    spec = spec_of(*labels)
    config = DataConfig.model_validate({**written(tmp_path, ending, cells).model_dump(), "drop_labels": drop})
    with capture_logs() as logs:
        assert by_row(spec, config) == kept
    count = len(cells) - len(kept)
    dropped = [one for one in logs if one["event"] == "rows.dropped"]
    assert [(one["split"], one["setting"], one["rows"], one["of_rows"]) for one in dropped] == [
        (split, "data.drop_labels", count, len(cells)) for split in ("train", "validation")
    ]
    seen = survey(spec, config, "train")
    assert (seen.num_rows, seen.dropped, seen.unknown) == (len(kept), {"drop_labels": count}, {})
    assert f"{count} rows are dropped by tasks.t.data.drop_labels" in [
        one.found for one in judge(spec, seen, "train rows", (1, 1))
    ]


def test_rows_are_dropped_before_shards_are_cut_and_keep_their_numbers_in_messages(tmp_path):
    spec = spec_of("a", "b")
    source = written(tmp_path, ".csv", ["-", "a", "b", "-", "a", "b", "-", "b"]).model_copy(
        update={"drop_labels": ["-"]}
    )
    parts = [load_task_data(spec, source, (k, 2)) for k in (1, 2)]
    texts = [set(part.train.texts) for part in parts]
    assert texts[0] | texts[1] == {(f"row {number}",) for number in (2, 3, 5, 6, 8)}
    assert not texts[0] & texts[1]
    broken = written(tmp_path, ".csv", ["-", "a", "-", "?"]).model_copy(update={"drop_labels": ["-"]})
    with pytest.raises(DataError, match=r"row 4: label: .* got '\?'"):
        load_task_data(spec, broken)


def test_the_text_of_a_dropped_row_may_be_missing_but_no_others(tmp_path):
    spec, path = spec_of("a", "b"), tmp_path / "rows.parquet"
    pandas.DataFrame({"text": [None, "x", "y"], "label": ["-", "a", "b"]}).to_parquet(path)
    source = DataConfig(train=str(path), validation=str(path), drop_labels=["-"])
    assert load_task_data(spec, source).train.texts == [("x",), ("y",)]
    pandas.DataFrame({"text": ["x", "y", None], "label": ["-", "a", "b"]}).to_parquet(path)
    with pytest.raises(DataError, match="row 3: text: expected text, got None"):
        load_task_data(spec, source)


def test_no_row_that_is_left_is_an_error_that_names_the_setting(tmp_path):
    source = written(tmp_path, ".csv", ["-", "-"]).model_copy(update={"drop_labels": ["-"]})
    with pytest.raises(
        DataError, match=r"^t, train rows in .*: no row is left: tasks\.t\.data\.drop_labels drops all 2 rows$"
    ):
        load_task_data(spec_of("a", "b"), source)
    found = list(judge(spec_of("a", "b"), survey(spec_of("a", "b"), source, "train"), "train rows", (1, 1)))
    assert [one.level for one in found] == [Level.ok, Level.fail]


STARS = TaskSpec("stars", "regression", ("text",), "label", value_range=(0.0, 5.0))


@pytest.mark.parametrize("score", [99, -1, 5.001])
def test_a_score_outside_the_range_is_refused_with_row_value_range_and_setting(score, tmp_path):
    with pytest.raises(
        DataError,
        match=rf"^stars, train rows in .*: row 3: label: expected a number from 0 to 5 \(tasks\.stars\.value_range\), "
        rf"got {score}; tasks\.stars\.data\.out_of_range: drop leaves such rows out$",
    ):
        load_task_data(STARS, written(tmp_path, ".csv", [0, 5, score, 2]))


def test_scores_outside_the_range_are_dropped_by_setting_but_not_missing_ones(tmp_path):
    source = written(tmp_path, ".csv", [0, 99, 5, -0.5, 2.5]).model_copy(update={"out_of_range": "drop"})
    with capture_logs() as logs:
        assert by_row(STARS, source) == [0.0, 5.0, 2.5]
    assert [(one["setting"], one["rows"]) for one in logs if one["event"] == "rows.dropped"] == [
        ("data.out_of_range", 2)
    ] * 2
    for score in ("", "nan", "inf"):
        bad = written(tmp_path, ".csv", ["1", score]).model_copy(update={"out_of_range": "drop"})
        with pytest.raises(DataError, match="row 2: label: expected a finite number"):
            load_task_data(STARS, bad)


def test_the_doctor_counts_scores_outside_the_range_and_says_how_far_they_go(tmp_path):
    source = written(tmp_path, ".csv", [1, 99, 99, -1, 5, 0])
    seen = survey(STARS, source, "train")
    found = list(judge(STARS, seen, "train rows", (1, 1)))
    assert [one.level for one in found] == [Level.ok, Level.fail]
    assert found[1].found == (
        "label: 3 rows have a score outside 0 to 5 (from -1 to 99): got '99' in 2 rows, '-1' in 1 rows"
    )
    assert "tasks.stars.data.out_of_range: drop" in found[1].advice
    dropping = survey(STARS, source.model_copy(update={"out_of_range": "drop"}), "train")
    assert (dropping.num_rows, dropping.out_of_range, dropping.dropped) == (3, {}, {"out_of_range": 3})


def test_a_regression_without_a_range_takes_every_finite_score(tmp_path):
    assert by_row(spec_of(), written(tmp_path, ".csv", [-1e9, 99, 0])) == [-1e9, 99.0, 0.0]


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (
            {"type": "masked_lm"},
            {"drop_labels": ["-"]},
            r"tasks\.t\.data\.drop_labels: the rows of a masked_lm have",
        ),
        (
            {"type": "regression", "label_column": "y"},
            {"out_of_range": "drop"},
            r"tasks\.t\.data\.out_of_range: drop needs tasks\.t\.value_range",
        ),
        ({"type": "regression", "label_column": "y"}, {"drop_labels": "-"}, r"expected a list, such as \['-'\]"),
        ({"type": "regression", "label_column": "y"}, {"drop_labels": [True]}, "put quotes around true"),
        ({"type": "regression", "label_column": "y"}, {"out_of_range": "clip"}, "refuse.*drop"),
    ],
)
def test_settings_that_dont_fit_the_task_are_refused_with_their_key(task, data, message):
    files = {"train": "a.csv", "validation": "b.csv"}
    with pytest.raises((ConfigError, ValueError), match=message):
        Config.model_validate({"tasks": {"t": {"text_columns": ["a"], **task, "data": files | data}}}).task_specs()
