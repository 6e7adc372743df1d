"""Rows for training, choosing and reporting."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_client.data import Rows, TaskData, load_task_data
from fedmtl_core.config import DataConfig
from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_experiment.rows import draw, trivial_baseline, without_texts, write_jsonl

SST2, STSB = PRESETS["sst2"], PRESETS["stsb"]
DATA = TaskData(
    Rows([(f"train {n}",) for n in range(50)], [n % 2 for n in range(50)]),
    Rows([(f"dev {n}",) for n in range(20)], [n % 2 for n in range(20)]),
)


def taken(**changes):
    return draw(SST2, DATA, **{"train_rows": 30, "validation_rows": 10, "report_rows": 15, "seed": 1, **changes})


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 20), st.integers(0, 2**40))
def test_no_row_is_for_two_purposes_and_reporting_is_not_drawn(train_rows, validation_rows, report_rows, seed):
    rows = taken(train_rows=train_rows, validation_rows=validation_rows, report_rows=report_rows, seed=seed)
    parts = [rows.train.texts, rows.validation.texts, rows.report.texts]
    assert [len(part) for part in parts] == [train_rows, validation_rows, report_rows]
    assert len({text for part in parts for text in part}) == sum(map(len, parts))
    assert rows.report.texts == DATA.validation.texts[:report_rows]


@settings(deadline=None)
@given(st.one_of(st.none(), st.integers(1, 30)), st.integers(1, 10), st.integers(1, 10), st.integers(0, 2**40))
def test_held_back_rows_are_in_no_other_part_and_the_same_for_every_number_of_training_rows(train, chosen, held, seed):
    rows = taken(train_rows=train, validation_rows=chosen, held_back_rows=held, seed=seed)
    assert len(rows.held_back) == held
    assert len(rows.train) == (50 - chosen - held if train is None else train)
    parts = [rows.train.texts, rows.validation.texts, rows.held_back.texts]
    assert len({text for part in parts for text in part}) == sum(map(len, parts))
    assert taken(train_rows=1, validation_rows=1, held_back_rows=held, seed=seed).held_back == rows.held_back
    if train is not None:
        assert replace(rows, held_back=None) == taken(train_rows=train, validation_rows=chosen, seed=seed)


def test_a_seed_draws_the_same_rows_again_and_more_rows_contain_the_fewer():
    assert taken() == taken()
    assert taken(seed=2).train != taken().train
    assert taken(train_rows=35).train.texts[:30] == taken().train.texts
    assert taken(train_rows=35).validation == taken().validation


def test_all_rows_are_those_that_choosing_leaves():
    rows = taken(train_rows=None, report_rows=None)
    assert (len(rows.train), len(rows.validation), len(rows.report)) == (40, 10, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_rows": 41},
            "sst2: 41 training and 10 validation rows are requested, but the training file has 50 rows",
        ),
        ({"train_rows": None, "validation_rows": 50}, "sst2: 1 training and 50 validation rows"),
        (
            {"held_back_rows": 11},
            "sst2: 30 training and 10 validation rows and 11 held-back rows are requested, but the",
        ),
        ({"report_rows": 21}, "sst2: 21 rows to report on are requested, but the evaluation file has 20 rows"),
    ],
)
def test_more_rows_than_there_are_is_an_error_with_both_numbers(changes, message):
    with pytest.raises(ConfigError, match=message):
        taken(**changes)


def test_what_has_a_text_that_is_evaluated_is_left_out_whatever_its_case_and_punctuation():
    pairs = [("One dog runs.", "Nobody"), ("a cat", "one  dog runs"), ("a cat", "A DOG"), ("!", "a cow")]
    data = TaskData(Rows(pairs, [1.0, 2.0, 3.0, 4.0]), Rows([("one dog runs", "x")], [5.0]))
    evaluated = [Rows([("One dog, runs",), ("?",)], [0, 1]), Rows([("a cow", "nobody")], [1])]
    assert without_texts(data, evaluated) == replace(data, train=Rows([("a cat", "A DOG")], [3.0]))


@pytest.mark.parametrize("spec", [SST2, STSB])
def test_a_client_reads_the_rows_that_were_written(spec, tmp_path):
    rows = load_task_data(spec, DataConfig(builtin=spec.name)).train.head(40)
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, spec, rows)
    read = load_task_data(spec, DataConfig(train=str(path), validation=str(path))).train
    assert sorted(zip(read.texts, read.labels, strict=True)) == sorted(zip(rows.texts, rows.labels, strict=True))


def test_what_no_reading_comes_to_is_the_larger_class_and_no_correlation():
    assert trivial_baseline(SST2, [0, 1, 1, 1]) == 0.75
    assert trivial_baseline(STSB, [0.0, 5.0]) == 0.0
