"""Parquet: the wanted columns and nothing else."""

from datetime import datetime

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from fedmtl_client.reading import Dialect, read_files
from fedmtl_core.errors import DataError
from tests.client.reading.support import read


def parquet(tmp_path, name="rows.parquet", **columns):
    path = tmp_path / name
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize(
    "type_",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
    ],
    ids=str,
)
def test_a_text_is_a_text_however_it_is_stored(type_, tmp_path):
    texts = ["a", "2021-03-04", "", "a"]
    path = parquet(tmp_path, text=pyarrow.array(texts).cast(type_), label=pyarrow.array([1, 0, 1, 0]))
    assert read(path, texts=("text",)) == list(zip(texts, [1, 0, 1, 0], strict=True))


@pytest.mark.parametrize(
    ("values", "type_"),
    [([1], "int64"), ([datetime(2021, 3, 4)], r"timestamp\[us\]"), ([b"a"], "binary"), ([["a"]], "list<")],
)
def test_a_column_of_another_type_is_no_text_and_named_with_its_type(values, type_, tmp_path):
    path = parquet(tmp_path, text=pyarrow.array(values), label=pyarrow.array([1]))
    with pytest.raises(
        DataError, match=rf"rows\.parquet can't be read as parquet: column 'text': expected text, found {type_}"
    ):
        read(path, texts=("text",))
    assert read(path, "label", texts=("text",)) == [(1,)]


def test_columns_nobody_asked_for_may_be_of_any_type(tmp_path):
    other = {
        "map": pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "duration": pyarrow.array([1, 2], pyarrow.duration("s")),
        "struct": pyarrow.array([{"text": "x"}, {"text": "y"}]),
    }
    path = parquet(tmp_path, **other, text=pyarrow.array(["a", "b"]), label=pyarrow.array([1, 0]))
    assert read(path, texts=("text",)) == [("a", 1), ("b", 0)]


def test_only_the_wanted_columns_are_read(tmp_path):
    path = parquet(tmp_path, note=pyarrow.array(["x" * 100_000] * 10), label=pyarrow.array([1] * 10))
    content = bytearray(path.read_bytes())
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)  # the bytes of the other column can't be read
    assert read(path, "label") == [(1,)] * 10
    with pytest.raises(DataError, match=r"rows\.parquet can't be read as parquet: "):
        read(path, "note")


def test_a_name_that_two_columns_have_is_refused(tmp_path):
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="2 columns have the name 'text'"):
        read(tmp_path / "rows.parquet", "text")


def test_the_class_names_that_datasets_writes_are_kept(tmp_path):
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": names, "tags": datasets.List(names), "x": datasets.Value("int64")}
    )
    rows = {"text": ["a", "b"], "label": [1, 0], "tags": [[0, 1], []], "x": [1, 2]}
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    table = read_files(str(path), ["text", "label", "tags", "x"], ["text"], Dialect())
    assert table.class_names == {"label": ("no", "yes"), "tags": ("no", "yes")}
    assert dict(table.columns) == rows
    assert read_files(str(path), ["text"], ["text"], Dialect()).class_names == {}


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b'{"info": {"features": {"label": {"names": 3}}}}', b"\xff"])
def test_metadata_that_datasets_would_not_write_declare_nothing(metadata, tmp_path):
    table = pyarrow.table({"label": [1]}).replace_schema_metadata({"huggingface": metadata})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert read_files(str(tmp_path / "rows.parquet"), ["label"], [], Dialect()).class_names == {}
