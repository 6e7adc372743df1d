"""Reading all columns of a file."""

from __future__ import annotations

import json

import datasets
import pytest

from fedmtl_client.columns import read_columns
from fedmtl_core.errors import DataError


def test_all_columns_are_read_whatever_the_format(tmp_path):
    (tmp_path / "a.csv").write_text('text,kind\n"a, b",x\nc,y\n')
    (tmp_path / "a.tsv").write_text("text\tkind\na, b\tx\nc\ty\n")
    rows = [{"text": "a, b", "kind": "x"}, {"text": "c", "kind": "y"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        found = read_columns(str(tmp_path / name)).columns
        assert found == {"text": ["a, b", "c"], "kind": ["x", "y"]}, name


def test_the_class_names_of_parquet_are_kept(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    assert read_columns(str(tmp_path / "a.parquet")).class_names == {"label": ("no", "yes")}


def test_keys_that_some_objects_lack_and_columns_without_a_name_of_their_own_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x", "note": 1}\n{"text": "b", "label": "y"}\n')
    assert list(read_columns(str(tmp_path / "a.jsonl")).columns) == ["text", "label"]
    (tmp_path / "a.csv").write_text(",text,label,label\n0,a,x,y\n")
    assert list(read_columns(str(tmp_path / "a.csv")).columns) == ["text"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ("", "the file is empty: expected a header"),
        ("text,kind\n", "has no rows"),
        (",\n1,2\n", "has no column"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_columns(str(tmp_path / "a.csv"))
