"""The toy language."""

import subprocess
import sys

import pytest

from fedmtl_core.model import toy


def texts(row):
    return tuple(value for value in row.values() if isinstance(value, str))


@pytest.mark.parametrize("task", toy.tasks())
def test_evaluation_rows_never_stand_in_train_in_either_order(task):
    train, validation = toy.rows(task)
    assert (len(train), len(validation)) == (toy.NUM_TRAIN, toy.NUM_VALIDATION)
    seen = {frozenset(texts(row)) for row in train}
    assert not any(frozenset(texts(row)) in seen for row in validation)


@pytest.mark.parametrize("task", toy.tasks())
def test_every_word_is_in_the_vocabulary(task):
    vocabulary = set(toy.vocabulary())
    assert {word for row in toy.rows(task)[0] for text in texts(row) for word in text.split()} <= vocabulary


@pytest.mark.parametrize("task", ["sst2", "qqp"])
def test_classes_are_balanced(task):
    train, _ = toy.rows(task)
    assert 0.45 < sum(row["label"] for row in train) / len(train) < 0.55


def test_scores_take_each_value_about_equally_often():
    train, _ = toy.rows("stsb")
    labels = [row["label"] for row in train]
    assert sorted(set(labels)) == [0.0, 1.667, 3.333, 5.0]
    assert min(labels.count(value) for value in set(labels)) > len(labels) / 6


def test_every_process_sees_the_same_rows():
    command = "from fedmtl_core.model import toy; print(toy.rows('qqp')[0][17])"
    other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(toy.rows("qqp")[0][17])


def test_a_duplicate_shares_every_concept_and_another_pair_one_at_most():
    concept = {
        word: (table, number)
        for table, concepts in enumerate(toy._CONCEPTS)
        for number, words in enumerate(concepts)
        for word in words
    }
    for row in toy.rows("qqp")[0][:500]:
        first, second = ({concept[w] for w in row[q].split() if w in concept} for q in ("question1", "question2"))
        assert len(first & second) in ({3} if row["label"] else {0, 1})
