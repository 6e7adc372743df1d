"""Proposals for a new task: pure functions of its rows."""

from __future__ import annotations

import random

import pytest

from fedmtl_client import proposals
from fedmtl_client.tables import Table

TICKETS = {
    "ticket_id": ["7", "8", "9", "10"],
    "text": ["the app crashes", "where is it", "the app crashes again", "thanks a lot"],
    "kind": ["bug", "question", "bug", "praise"],
}


def table(**columns: list[object]) -> Table:
    return Table(columns)


def test_a_column_with_few_values_is_the_label_and_one_with_words_is_the_text():
    rows = Table(TICKETS)
    assert proposals.propose_label_column(rows) == "kind"
    assert proposals.propose_text_columns(rows, "kind") == ("text",)


def test_a_column_with_the_name_of_a_label_comes_before_one_with_few_values():
    assert proposals.propose_label_column(
        table(label=["a", "b", "a"], text=["x y", "z w", "u v"], lang=["de"] * 3)
    ) == ("label")


def test_rows_of_scores_have_a_label_column_too():
    rows = table(sentence1=["a b", "c d"], sentence2=["e f", "g h"], similarity=["0.25", "4.75"])
    assert proposals.propose_label_column(rows) == "similarity"
    assert proposals.propose_text_columns(rows, "similarity") == ("sentence1", "sentence2")


def test_a_column_that_numbers_rows_is_no_label_and_no_text():
    rows = table(id=["a", "b", "c"], text=["one two three four", "five six seven eight", "nine ten and so on"])
    assert proposals.propose_label_column(rows) is None
    assert proposals.propose_text_columns(rows, None) == ("text",)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["question1", "question2", "label"], ("question1", "question2")),
        (["premise", "hypothesis", "label"], ("premise", "hypothesis")),
        (["text_a", "text_b", "label"], ("text_a", "text_b")),
        (["first", "second", "label"], ("first", "second")),
        (["Subject", "body", "label"], ("Subject", "body")),
        (["title", "text", "label"], ("title", "text")),
        (["Sentence", "label"], ("Sentence",)),
        (["note", "body", "label"], ("body",)),
    ],
)
def test_text_columns_are_known_by_their_names(columns, expected):
    rows = table(**{name: ["some words here", "and others there"] for name in columns})
    assert proposals.propose_text_columns(rows, "label") == expected


def test_of_two_columns_of_text_with_unequal_lengths_the_longer_one_is_proposed():
    rows = table(author=["Ann Bee", "Cid Dee"], story=["word " * 40, "text " * 50], label=["a", "b"])
    assert proposals.propose_text_columns(rows, "label") == ("story",)


def test_a_column_with_missing_texts_is_no_text():
    rows = table(text=["some words", None], other=["a b c", "d e f"], label=["a", "b"])
    assert proposals.propose_text_columns(rows, "label") == ("other",)


@pytest.mark.parametrize(
    ("cells", "type_", "labels"),
    [
        (["b", "a", "b"], "classification", ("a", "b")),
        (["no", "yes"], "classification", ("no", "yes")),
        ([True, False], "classification", ("false", "true")),
        (["2", "10", "1.0", " 1 "], "classification", ("1", "2", "10")),
        ([1.0, 0.0, 1.0], "classification", ("0", "1")),
        (["3", "?", "1"], "classification", ("1", "3", "?")),
        ([0, 1, None, ""], "classification", ("0", "1")),
    ],
)
def test_classes_are_named_in_a_stated_order(cells, type_, labels):
    assert proposals.propose_type(cells) == type_
    assert proposals.propose_labels(cells) == labels


def test_classes_that_a_file_declares_keep_their_order():
    assert proposals.propose_type([0, 1], ("good", "bad")) == "classification"
    assert proposals.propose_labels([0, 1], ("good", "bad")) == ("good", "bad")


def test_integers_from_0_without_gaps_and_with_several_rows_each_are_classes():
    assert proposals.propose_type([row % 20 for row in range(60)]) == "classification"
    assert proposals.propose_type([1 + row % 20 for row in range(60)]) == "regression"
    assert proposals.propose_type([row % 101 for row in range(1_000)]) == "regression"


@pytest.mark.parametrize(("labels", "rows", "expected"), [(77, 800, True), (77, 100, False), (1, 9, False)])
def test_many_labels_are_classes_if_they_repeat(labels, rows, expected):
    assert proposals.may_be_classes(labels, rows) is expected


def test_labels_of_many_words_are_found_in_a_column_with_a_usual_name():
    texts = [f"some words {row}" for row in range(8)]
    labels = ["wants to cancel the contract at once", "asks about a refund of the price"] * 4
    assert proposals.propose_label_column(table(text=texts, label=labels)) == "label"


def test_columns_that_are_as_likely_are_all_named():
    rows = table(text=["a b c", "d e f", "g h i"], one=["x", "y", "x"], two=["x", "y", "y"])
    assert proposals.likely_label_columns(rows) == ["two", "one"]
    assert proposals.likely_label_columns(table(text=["a b c d", "d e f g"])) == []


@pytest.mark.parametrize("cells", [["0.5", "1"], [0.5, 2.0], list(range(11))])
def test_numbers_other_than_a_few_integers_are_a_regression(cells):
    assert proposals.propose_type(cells) == "regression"


def test_the_range_of_scores_is_widened_to_integers():
    assert proposals.propose_value_range(["0.2", "4.75", ""]) == (0.0, 5.0)
    assert proposals.propose_value_range([-1.5, 2]) == (-2.0, 2.0)
    assert proposals.propose_value_range(["1"]) is None
    assert proposals.propose_value_range([]) is None


def test_metrics_fit_the_type():
    assert proposals.propose_metrics("classification", ("a", "b")) == ("accuracy", "f1")
    assert proposals.propose_metrics("classification", ("a", "b", "c")) == ("accuracy",)
    assert proposals.propose_metrics("regression") == ("pearson", "spearman")
    assert proposals.propose_metrics("masked_lm") == ("masked_accuracy",)


def test_the_longest_input_cuts_at_most_one_row_in_a_hundred():
    assert proposals.propose_max_length([5] * 99 + [400]) == 512
    assert proposals.propose_max_length([5] * 100 + [400]) == 32
    assert proposals.propose_max_length([33]) == 64
    assert proposals.propose_max_length([5_000]) == 512
    assert proposals.propose_max_length([100], at_most=48) == 48
    assert proposals.propose_max_length([]) == 32


def test_a_split_takes_a_fifth_of_each_label_and_keeps_same_texts_together():
    chooser = random.Random(3)
    texts = [(f"text {chooser.randrange(300)}",) for _ in range(500)]
    label_of = {text: ("a" if hash_ % 4 else "b") for hash_, text in enumerate(sorted(set(texts)))}
    labels = [label_of[text] for text in texts]
    train, validation = proposals.split_rows(texts, labels)
    assert sorted(train + validation) == list(range(500))
    assert not {texts[row] for row in train} & {texts[row] for row in validation}
    for label in "ab":
        distinct = {text for text, one in label_of.items() if one == label}
        assert len({texts[row] for row in validation} & distinct) == round(0.2 * len(distinct))
    assert proposals.split_rows(texts, labels) == (train, validation)


def test_a_split_of_few_rows_has_one_to_evaluate_on():
    assert [len(part) for part in proposals.split_rows([("a",), ("b",)], ["x", "y"])] == [1, 1]
    assert proposals.split_rows([("a",), ("a",)], ["x", "x"]) == ([0, 1], [])


def test_the_column_with_a_servers_labels_is_found():
    rows = table(text=["a b", "c d"], lang=["de", "en"], verdict=[" bug", "praise"], n=["0", "1"])
    assert proposals.matching_label_column(rows, ("bug", "praise")) == "verdict"
    assert proposals.matching_label_column(rows, ("x", "y")) is None
    declared = Table({"text": ["a b"], "verdict": [0]}, class_names={"verdict": ("bug", "praise")})
    assert proposals.matching_label_column(declared, ("bug", "praise")) == "verdict"
