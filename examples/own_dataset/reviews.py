"""Rows from a database: reviews with stars, which become positive and negative labels."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from fedmtl_client.data import RowSource
from fedmtl_core.tasks.spec import TaskSpec


class Reviews(RowSource):
    """The table `reviews`; every fourth review is kept for evaluation.

    Args:
        spec: the task, with the text column `text` and the label column `sentiment` (negative, positive) or `stars`.
        path: a file of SQL that creates the table. A real source would name a database.
        positive_from: the minimum number of stars of a positive review.
    """

    def __init__(self, spec: TaskSpec, *, path: str, positive_from: int = 4):
        super().__init__(spec)
        self._script = Path(path).read_text(encoding="utf-8")
        self._positive_from = positive_from

    def train(self) -> Iterator[Mapping[str, Any]]:
        return self._rows("id % 4 != 0")

    def validation(self) -> Iterator[Mapping[str, Any]]:
        return self._rows("id % 4 = 0")

    def _rows(self, condition: str) -> Iterator[Mapping[str, Any]]:
        with closing(sqlite3.connect(":memory:")) as database:
            database.executescript(self._script)
            for text, stars in database.execute(f"SELECT text, stars FROM reviews WHERE {condition} ORDER BY id"):
                sentiment = "positive" if stars >= self._positive_from else "negative"
                yield {"text": text, "stars": stars, "sentiment": sentiment}
