"""A toy language: three generated tasks that a small encoder learns within a minute, for demos and tests.

It is not natural language and says nothing about real data. It has a few dozen concepts, each with two
interchangeable words, and sentences made from a handful of templates:

* `sst2`: one to three opinions ("the film was not dull"), labeled by the majority; "not" inverts an opinion.
* `qqp`: two questions with a verb, an adjective and a noun each; duplicates name the same three concepts,
  mostly in other words, and other pairs have at most one concept in common.
* `stsb`: two statements of three concepts each; the score is 5/3 of the number they share.

A task's rows are drawn from a fixed seed, so every process has the same rows. No row is drawn twice, in either order of
its two texts, so training and evaluation rows don't overlap.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache

Row = dict[str, str | int | float]
Words = tuple[str, ...]

NUM_TRAIN, NUM_VALIDATION = 6000, 1000
"""Number of rows in each task's splits."""

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
_CONCEPTS = (_ADJECTIVES, _VERBS, _NOUNS)

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
    "we will {1} the {0} {2}",
    "somebody wants to {1} this {0} {2}",
    "tomorrow they may {1} some {0} {2}",
)

SPECIAL_TOKENS: Words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """Return the special tokens, then every word of the language, sorted."""
    concepts = [word for table in _CONCEPTS for words in table for word in words]
    templates = " ".join((*_QUESTIONS, *_STATEMENTS, *_ADVERBS, *_JOINERS, "the was not"))
    words = {*concepts, *_GOOD, *_BAD, *re.sub(r"\{\d\}", " ", templates).split()}
    return [*SPECIAL_TOKENS, *sorted(words)]


@cache
def rows(task: str) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Return the training and evaluation rows of `sst2`, `qqp` or `stsb`, with the columns of the GLUE task."""
    unique: dict[frozenset[str], Row] = {}
    for row in _draw(_TASKS[task], random.Random(f"toy language: {task}")):
        unique.setdefault(frozenset(text for text in row.values() if isinstance(text, str)), row)
        if len(unique) == NUM_TRAIN + NUM_VALIDATION:
            break
    drawn = tuple(unique.values())
    return drawn[:NUM_TRAIN], drawn[NUM_TRAIN:]


def tasks() -> list[str]:
    """Return the names of the tasks."""
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
    duplicate = rng.randrange(2)
    first, second = _meanings(rng, shared=len(_CONCEPTS) if duplicate else rng.randrange(2))
    return {"question1": _say(rng, _QUESTIONS, first), "question2": _say(rng, _QUESTIONS, second), "label": duplicate}


def _statements(rng: random.Random) -> Row:
    shared = rng.randrange(len(_CONCEPTS) + 1)
    first, second = _meanings(rng, shared)
    return {
        "sentence1": _say(rng, _STATEMENTS, first),
        "sentence2": _say(rng, _STATEMENTS, second),
        "label": round(5.0 * shared / len(_CONCEPTS), 3),
    }


def _meanings(rng: random.Random, shared: int) -> tuple[list[int], list[int]]:
    """Draw a concept from each table, twice, with the given number of equal concepts."""
    first = [rng.randrange(len(table)) for table in _CONCEPTS]
    same = rng.sample(range(len(_CONCEPTS)), shared)
    second = [
        concept if place in same else rng.choice([other for other in range(len(table)) if other != concept])
        for place, (table, concept) in enumerate(zip(_CONCEPTS, first, strict=True))
    ]
    return first, second


def _say(rng: random.Random, templates: Words, meaning: list[int]) -> str:
    words = [rng.choice(table[concept]) for table, concept in zip(_CONCEPTS, meaning, strict=True)]
    return rng.choice(templates).format(*words)


_TASKS: dict[str, Callable[[random.Random], Row]] = {"sst2": _opinions, "qqp": _questions, "stsb": _statements}
