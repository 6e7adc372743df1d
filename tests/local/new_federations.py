"""Calls of `fedmtl-local new`, and files of rows for it."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from fedmtl_core.errors import FedMTLError
from fedmtl_core.model import toy
from fedmtl_local.new import cli

TOY = ("--encoder", "builtin:toy")


def rows_of(task: str, count: int) -> list[dict[str, object]]:
    return [dict(row) for row in toy.rows(task)[0][:count]]


def save(path: Path, rows: list[dict[str, object]]) -> str:
    """Write rows in the format that the path's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        delimiter = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
        quote = '"' if delimiter == "," else ""
        path.write_text("".join(delimiter.join(f"{quote}{cell}{quote}" for cell in line) + "\n" for line in lines))
    return str(path)


def opinions(path: Path, count: int = 60) -> str:
    names = ("bad", "good")
    return save(path, [{"sentence": row["sentence"], "verdict": names[row["label"]]} for row in rows_of("sst2", count)])


def new(folder: Path, *options: str, answers: str | None = None) -> str:
    """What the command says."""
    result = CliRunner().invoke(cli.new_federation_app, [str(folder), *TOY, *options], input=answers)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def refused(tmp_path: Path, error: type[FedMTLError], match: str, *options: str, name: str = "refused") -> None:
    """Check that the command fails, and leaves nothing behind."""
    folder = tmp_path / name
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=match):
        new(folder, *options)
    assert sorted(tmp_path.rglob("*")) == before
