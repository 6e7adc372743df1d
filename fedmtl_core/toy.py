"""A toy language: three generated tasks that a small encoder learns within a minute, for demos and tests.

It is not natural language and says nothing about real data. Its world is a few dozen concepts, each with
two interchangeable words, and sentences made from a handful of templates:

* `sst2`: one to three opinions ("the film was not dull"), labelled by what most of them say; "not" flips one.
* `qqp`: two questions with a verb, an adjective and a noun each; duplicates name the same three concepts,
  mostly in other words, the others name three different ones.
* `stsb`: two statements of four concepts each; the score is 5/4 of the number they share.

The rows of a task are drawn from a fixed seed, so every process sees the same ones; no row is drawn twice, in
either order of its two texts, so evaluation rows never stand in train.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache

Row = dict[str, str | int | float]
Words = tuple[str, ...]

NUM_TRAIN, NUM_VALIDATION = 6000, 1000
"""Rows of each task's splits."""

_NOUNS: tuple[Words, ...] = (
    ("film", "movie"),
    ("meal", "dinner"),
    ("song", "tune"),
    ("book", "novel"),
    ("car", "auto"),
    ("house", "home"),
    ("phone", "mobile"),
    ("coat", "jacket"),
)
_VERBS: tuple[Words, ...] = (
    ("buy", "purchase"),
    ("repair", "mend"),
    ("sell", "trade"),
    ("choose", "select"),
    ("share", "lend"),
    ("find", "locate"),
)
_ADJECTIVES: tuple[Words, ...] = (
    ("old", "ancient"),
    ("small", "tiny"),
    ("red", "crimson"),
    ("cheap", "affordable"),
)
_PEOPLE: tuple[Words, ...] = (
    ("teacher", "tutor"),
    ("doctor", "physician"),
    ("child", "kid"),
    ("farmer", "grower"),
)
_GOOD: Words = ("great", "wonderful", "superb", "delightful", "brilliant", "charming", "lovely", "pleasant")
_BAD: Words = ("awful", "dreadful", "terrible", "dull", "clumsy", "dreary", "boring", "poor")
_ADVERBS: Words = ("", "very ", "truly ", "quite ")
_JOINERS: Words = (" and ", " , ", " but ")

_QUESTIONS: Words = (
    "how do i {1} a {0} {2}",
    "what is the best way to {1} a {0} {2}",
    "where can one {1} the {0} {2}",
)
_STATEMENTS: Words = (
    "the {0} will {1} the {2} {3}",
    "a {0} wants to {1} this {2} {3}",
    "tomorrow the {0} may {1} some {2} {3}",
)

SPECIAL_TOKENS: Words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """Special tokens first, then every word the language has, sorted."""
    concepts = [word for table in (_NOUNS, _VERBS, _ADJECTIVES, _PEOPLE) for words in table for word in words]
    templates = " ".join((*_QUESTIONS, *_STATEMENTS, *_ADVERBS, *_JOINERS, "the was not"))
    words = {*concepts, *_GOOD, *_BAD, *re.sub(r"\{\d\}", " ", templates).split()}
    return [*SPECIAL_TOKENS, *sorted(words)]


@cache
def rows(task: str) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The training and evaluation rows of `sst2`, `qqp` or `stsb`, with the columns of the GLUE task."""
    unique: dict[frozenset[str], Row] = {}
    for row in _draw(_TASKS[task], random.Random(f"toy language: {task}")):
        unique.setdefault(frozenset(text for text in row.values() if isinstance(text, str)), row)
        if len(unique) == NUM_TRAIN + NUM_VALIDATION:
            break
    drawn = tuple(unique.values())
    return drawn[:NUM_TRAIN], drawn[NUM_TRAIN:]


def tasks() -> list[str]:
    """Names of the tasks."""
    return list(_TASKS)


def _draw(make: Callable[[random.Random], Row], rng: random.Random) -> Iterator[Row]:
    while True:
        yield make(rng)


def _opinions(rng: random.Random) -> Row:
    label = rng.randrange(2)
    count = rng.choice((1, 2, 3))
    majority = count // 2 + 1
    verdicts = [label] * majority + [rng.randrange(2) for _ in range(count - majority)]
    rng.shuffle(verdicts)
    return {"sentence": rng.choice(_JOINERS).join(_opinion(rng, bool(good)) for good in verdicts), "label": label}


def _opinion(rng: random.Random, good: bool) -> str:
    negated = rng.random() < 0.3
    word = rng.choice(_GOOD if good != negated else _BAD)
    return f"the {rng.choice(rng.choice(_NOUNS))} was {'not ' if negated else ''}{rng.choice(_ADVERBS)}{word}"


def _questions(rng: random.Random) -> Row:
    tables = (_ADJECTIVES, _VERBS, _NOUNS)
    duplicate = rng.randrange(2)
    first = [rng.randrange(len(table)) for table in tables]
    second = first if duplicate else _others(rng, tables, first, keep=())
    return {
        "question1": _say(rng, _QUESTIONS, tables, first),
        "question2": _say(rng, _QUESTIONS, tables, second),
        "label": duplicate,
    }


def _statements(rng: random.Random) -> Row:
    tables = (_PEOPLE, _VERBS, _ADJECTIVES, _NOUNS)
    first = [rng.randrange(len(table)) for table in tables]
    shared = rng.randrange(len(tables) + 1)
    second = _others(rng, tables, first, keep=rng.sample(range(len(tables)), shared))
    return {
        "sentence1": _say(rng, _STATEMENTS, tables, first),
        "sentence2": _say(rng, _STATEMENTS, tables, second),
        "label": 5.0 * shared / len(tables),
    }


def _others(
    rng: random.Random, tables: tuple[tuple[Words, ...], ...], concepts: list[int], keep: tuple[int, ...] | list[int]
) -> list[int]:
    """Other concepts from the same tables, but for the places to keep."""
    return [
        concept if place in keep else rng.choice([other for other in range(len(table)) if other != concept])
        for place, (table, concept) in enumerate(zip(tables, concepts, strict=True))
    ]


def _say(rng: random.Random, templates: Words, tables: tuple[tuple[Words, ...], ...], concepts: list[int]) -> str:
    words = [rng.choice(table[concept]) for table, concept in zip(tables, concepts, strict=True)]
    return rng.choice(templates).format(*words)


_TASKS: dict[str, Callable[[random.Random], Row]] = {"sst2": _opinions, "qqp": _questions, "stsb": _statements}
