"""Which class a cell of a label column names."""

import datetime
import math
import uuid
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.kinds import Classification, TaskKind
from fedmtl_core.tasks.labels import LabelNames, Values
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import TaskSpec

STARS = ("1", "2", "3")


def number_of(labels, cell):
    return LabelNames(tuple(labels)).number_of(cell)


def spellings(number: int) -> st.SearchStrategy[object]:
    """What files and libraries have for an integer."""
    sign, digits = ("-" if number < 0 else ""), abs(number)
    as_text = st.builds(
        lambda before, plus, zeros, fraction, after: f"{before}{sign or plus}{zeros}{digits}{fraction}{after}",
        st.sampled_from(["", " ", "\t", "\u00a0"]),
        st.sampled_from(["", "+"]),
        st.sampled_from(["", "0", "000"]),
        st.sampled_from(["", ".", ".0", ".000", "e0", ".0E+0"]),
        st.sampled_from(["", " ", "\r"]),
    )
    objects: list[object] = [number, float(number), Decimal(number), Decimal(f"{number}.00"), Decimal(number) * 1]
    objects += [np.int64(number), np.int16(number), np.float64(number), np.float32(number), np.array(number)]
    objects += [np.str_(number), Fraction(number), torch.tensor(number), torch.tensor(float(number))]
    objects += [f"{number * 10}e-1"]
    return st.sampled_from(objects) | as_text


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.data())
def test_however_a_number_is_spelt_its_class_is_the_one_whose_name_is_that_number(data):
    numbers = data.draw(st.lists(st.integers(-300, 300), min_size=2, max_size=8, unique=True))
    names = [str(data.draw(spellings(number).filter(lambda cell: isinstance(cell, str)))) for number in numbers]
    labels = LabelNames(tuple(names))
    for index, number in enumerate(numbers):
        assert labels.number_of(data.draw(spellings(number))) == index
    stranger = data.draw(st.integers(-300, 300).filter(lambda number: number not in numbers).flatmap(spellings))
    with pytest.raises(ValueError, match="expected one of"):
        labels.number_of(stranger)


@pytest.mark.parametrize(
    ("label", "cells"),
    [
        ("0.1", [0.1, "0.10", ".1", "1e-1", Decimal("0.100"), np.float32(0.1), np.float64(0.1)]),
        ("-2.5", [-2.5, "-02.50", np.float32(-2.5)]),
        ("12345678901234567890", [12345678901234567890, "12345678901234567890.0", Decimal("12345678901234567890")]),
        ("100000", [1e5, "1E5", Decimal("1E+5")]),
    ],
)
def test_numbers_are_compared_exactly(label, cells):
    for cell in cells:
        assert number_of(["other", label], cell) == 1
    for cell in ("12345678901234567891", 0.11, "-2.51", 100001):
        with pytest.raises(ValueError, match="expected one of"):
            number_of(["other", label], cell)


@pytest.mark.parametrize(
    "cell", ["1_0", "１０", "0x0a", "1e1e1", "1,0", "10%", "ten", "1 0", "--10", "1e99999999999999999999"]
)
def test_what_only_looks_like_a_number_is_none(cell):
    for labels in (["10", "20"], [f"class {i}" for i in range(12)]):
        with pytest.raises(ValueError, match="expected one of"):
            number_of(labels, cell)


@pytest.mark.parametrize("cell", [2, "2", " 2 ", 2.0, "2.0", np.int64(2), np.float32(2), Decimal(2), torch.tensor(2)])
def test_a_number_is_a_class_number_where_no_label_is_a_number(cell):
    assert number_of(["negative", "neutral", "positive"], cell) == 2


@pytest.mark.parametrize("cell", ["02", "+2", "2e0", "2_", "1_0", True, "0x2", 2.5, -1, 3, "-0", [2], (2,), {"a": 2}])
def test_only_an_integer_in_its_plain_form_and_range_is_a_class_number(cell):
    with pytest.raises(ValueError, match=r"expected one of a, b, c, or a number from 0 to 2, got "):
        number_of(["a", "b", "c"], cell)


def test_a_number_that_is_no_name_is_refused_with_both_readings_where_labels_are_numbers():
    with pytest.raises(
        ValueError,
        match=r"^expected one of 1, 2, 3, got 0: it is no label's name, as a class number, counted from 0, it would "
        r"be '1'\. Labels that are numbers are matched by name only$",
    ):
        number_of(STARS, 0)
    with pytest.raises(ValueError, match=r"^expected one of 1, 2, 3, got '7'$"):
        number_of(STARS, "7")
    with pytest.raises(ValueError, match=r"got 3: it is no label's name.* it would be '3\+'"):
        number_of(["0", "1", "2", "3+"], 3)


@pytest.mark.parametrize("cell", [1, "2", 3.0, " 4"])
def test_a_number_that_stands_in_another_label_is_refused_with_both_readings(cell):
    labels = [f"{number} star" for number in range(1, 6)]
    number = int(float(cell))
    readings = f"the number in '{number} star', as a class number, counted from 0, it would be '{number + 1} star'"
    with pytest.raises(ValueError, match=readings):
        number_of(labels, cell)
    assert number_of(labels, 0) == 0


def test_a_number_is_a_class_number_where_it_stands_in_that_label_or_in_none():
    assert [number_of(["LABEL_0", "LABEL_1", "LABEL_2"], cell) for cell in (0, 1, "2")] == [0, 1, 2]
    assert [number_of(["covid 19", "sars 2"], cell) for cell in (0, 1)] == [0, 1]
    with pytest.raises(ValueError, match="it is the number in '1 of 3', as a class number"):
        number_of(["1 of 3", "2 of 3", "3 of 3"], 1)


def test_labels_given_as_how_many_there_are_keep_their_numbers():
    labels = LabelNames(("0", "1", "2"))
    assert [labels.number_of(cell) for cell in (0, 1, 2, 0.0, "0", "2.0", np.int8(1))] == [0, 1, 2, 0, 0, 2, 1]


def test_text_is_a_name_as_it_stands_or_without_the_white_space_around_it():
    assert number_of(["bug", "feature request"], " feature request\t") == 1
    assert number_of([" bug", "praise "], "bug") == 0
    assert number_of([" bug", "praise "], " praise") == 1
    for cell in ("Bug", "feature  request", "featurerequest", ""):
        with pytest.raises(ValueError, match="expected one of bug, feature request"):
            number_of(["bug", "feature request"], cell)


@pytest.mark.parametrize("words", [("true", "false"), ("yes", "no"), ("on", "off"), ("t", "f"), ("y", "n"), ("1", "0")])
@pytest.mark.parametrize("change", [str, str.upper, str.capitalize])
def test_booleans_are_the_labels_that_mean_them_in_either_order(words, change):
    true, false = map(change, words)
    for labels in ((true, false), (false, true)):
        for cell in (True, np.True_, torch.tensor(True), "true", "True", " TRUE"):
            assert labels[number_of(labels, cell)] == true
        for cell in (False, np.False_, torch.tensor(False), "false", "False"):
            assert labels[number_of(labels, cell)] == false


@pytest.mark.parametrize(
    "labels", [("spam", "ham"), ("0", "1", "2"), ("true", "wrong"), ("yes", "maybe"), ("yes", "no", "on", "off"), STARS]
)
@pytest.mark.parametrize("cell", [True, False, np.True_, "False"])
def test_booleans_are_nothing_to_labels_that_dont_mean_them(labels, cell):
    with pytest.raises(ValueError, match=r"got .*; no pair of labels means true and false"):
        number_of(labels, cell)


def test_one_and_zero_are_refused_where_as_booleans_they_are_other_labels_than_as_class_numbers():
    for labels in (("true", "false"), ("Yes", "No")):
        for cell, true, other in ((1, 0, 1), ("0", 1, 0), (1.0, 0, 1)):
            with pytest.raises(
                ValueError,
                match=f"as a boolean it would be '{labels[true]}', as a class number, .* it would be '{labels[other]}'",
            ):
                number_of(labels, cell)
    assert [number_of(["false", "true"], cell) for cell in (0, 1, "0", 1.0)] == [0, 1, 0, 1]
    assert [number_of(["yes", "no", "maybe"], cell) for cell in (0, 1, 2)] == [0, 1, 2]


@pytest.mark.parametrize("cell", [None, math.nan, np.nan, Decimal("nan"), pandas.NA, pandas.NaT])
def test_a_missing_value_is_no_name_whatever_the_labels_are(cell):
    with pytest.raises(ValueError, match=r"expected one of nan, None, NaT, <NA>.*, a missing value$"):
        number_of(["nan", "None", "NaT", "<NA>"], cell)
    assert number_of(["nan", "None"], "None") == 1  # a text is a text


def test_values_of_other_kinds_are_the_names_that_they_are_written_as():
    key = uuid.UUID(int=7)
    labels = LabelNames(("2020-01-31", "12:30:00", str(key)))
    assert [labels.number_of(cell) for cell in (datetime.date(2020, 1, 31), datetime.time(12, 30), key)] == [0, 1, 2]


def test_a_message_shows_neither_long_cells_nor_many_labels_whole():
    with pytest.raises(ValueError, match="expected one of") as refused:
        number_of([f"label {i}" for i in range(10_000)], "x" * 100_000)
    assert len(str(refused.value)) < 500
    assert "label 19, … (10,000 in all), or a number from 0 to 9999" in str(refused.value)


@pytest.mark.parametrize(
    "labels", [("1", "1.0"), ("01", "1"), ("a", " a"), ("a", "b", "a"), ("1e1", "10"), ("0", "-0")]
)
def test_labels_that_are_equal_by_value_are_refused_with_both(labels):
    with pytest.raises(ConfigError, match=rf"^tasks\.t: labels must differ, .*got {labels[0]!r} and {labels[-1]!r}$"):
        TaskSpec("t", "classification", ("text",), "label", labels)


def test_labels_that_differ_in_case_or_punctuation_are_two():
    assert Values(("a", "A", "1", "1,0", "", "1st")).first_repeated() is None


def test_kinds_of_ones_own_match_labels_as_the_built_in_ones_do():
    class Words(Classification):
        def target(self, value):
            return [TaskKind.target(self, one) for one in value]

    spec = TaskSpec("stars", "classification", ("text",), "label", STARS)
    assert Words(spec).target([1.0, " 2", "03", Decimal(1)]) == [0, 1, 2, 0]
    assert kind_of(spec).target(1.0) == 0


@pytest.mark.parametrize("cell", ["1_0", "１", "0x1", "infinity", "1,5", "True"])
def test_a_score_is_a_number_in_decimal_notation(cell):
    with pytest.raises(ValueError, match="expected a finite number"):
        kind_of(PRESETS["stsb"]).target(cell)
    assert kind_of(PRESETS["stsb"]).target(" 1.50 ") == 1.5
