"""Copies of the rows of one file, split into training and evaluation rows."""

from __future__ import annotations

import json
import math

from fedmtl_client import proposals
from fedmtl_client.client_file import NewTask
from fedmtl_client.tables import Table
from fedmtl_core.errors import DataError


def split_copies(task: NewTask, table: Table, file: str) -> tuple[str, str]:
    """Return JSON Lines of the rows to train on and of the rows to evaluate on, with the columns of a task.

    Args:
        task: the task.
        table: all rows.
        file: their file, for messages.

    Raises:
        DataError: the file has too few rows to split evaluation rows off.
    """
    columns = (*task.text_columns, *([task.label_column] if task.label_column else []))
    texts = list(zip(*(table.columns[column] for column in task.text_columns), strict=True))
    is_grouped = bool(task.labels) and task.label_column is not None
    groups = list(map(str, table.columns[task.label_column or ""])) if is_grouped else [""] * len(texts)
    parts = proposals.split_rows(texts, groups)
    if not all(parts):
        raise DataError(
            f"task {task.name}: {file} has {len(texts)} rows with {len(set(texts))} different texts: too few to split "
            "evaluation rows off. Name a file of evaluation rows after a comma"
        )
    train, validation = (
        "".join(
            json.dumps({column: _plain(table, column, row) for column in columns}, ensure_ascii=False, allow_nan=False)
            + "\n"
            for row in rows
        )
        for rows in parts
    )
    return train, validation


def _plain(table: Table, column: str, row: int) -> object:
    """Return a cell as JSON has it; the index of a declared class as the class's name."""
    cell, names = table.columns[column][row], table.class_names.get(column, ())
    if names and type(cell) is int:
        return names[cell] if 0 <= cell < len(names) else None
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    return cell if cell is None or isinstance(cell, (str, int, list)) else str(cell)
