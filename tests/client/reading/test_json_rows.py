"""JSON: every value is what it is in the file."""

import json
import re

import pytest

from fedmtl_client.reading import Dialect, read_files
from fedmtl_core.errors import DataError
from tests.client.reading.support import read


def lines(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


VALUES = ["2021-03-04", "12:30:00", "2021-03-04T12:00:00Z", 1, 1.5, True, None, "1", [1, "a"], {"b": 2}, 2**70, "é😀"]


def test_values_are_neither_guessed_nor_made_alike(tmp_path):
    rows = [{"text": str(value), "label": value} for value in VALUES]
    found = read(lines(tmp_path, *rows), "label")
    assert [(type(label), label) for (label,) in found] == [(type(value), value) for value in VALUES]


def test_a_text_after_megabytes_of_dates_is_a_text(tmp_path):
    rows = [{"text": "2021-03-04", "label": "date", "note": "x" * 200}] * 60_000 + [
        {"text": "a word", "label": "other"}
    ]
    assert read(lines(tmp_path, *rows))[-2:] == [("2021-03-04", "date"), ("a word", "other")]


def test_keys_nobody_asked_for_may_come_late_be_mixed_and_be_there_twice(tmp_path):
    rows = [
        {"text": "a", "label": 1},
        {"note": {"a": [1]}, "text": "b", "label": 0},
        '{"text":"c","label":1,"x":1,"x":2}',
    ]
    assert read(lines(tmp_path, *rows)) == [("a", 1), ("b", 0), ("c", 1)]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_like_lines(indent, tmp_path):
    rows = [{"text": "a [b", "label": 1}, {"text": "2021-03-04", "label": 0}]
    path = lines(tmp_path, "\n " + json.dumps(rows, indent=indent), name="rows.json")
    assert read(path) == [("a [b", 1), ("2021-03-04", 0)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("content", ['{"text": "é", "label": 1}\r\n\r\n', '[{"text": "é", "label": 1}]'])
def test_a_byte_order_mark_line_ends_of_windows_and_blank_lines_are_no_rows(content, encoding, tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(content.encode(encoding))
    assert read(path) == [("é", 1)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "a", "label": 1}, "", {"text": "b"}], "line 3 (row 2): there is no 'label', which other rows have"),
        ([{"text": "a"}, {"text": "b", "label": 1}], "line 1 (row 1): there is no 'label', which other rows have"),
        (['[{"text": "a", "label": 1}, {"text": "b"}]'], "row 2: there is no 'label', which other rows have"),
        ([{"text": "a", "label": 1}, '{"text": "b"'], "line 2, character "),
        ([{"text": "a", "label": 1}, '{"text": "b", "label": 1'], 'found \'{"text": "b", "label": 1\''),
        (['[{"text": "a", "label": 1},', '{"text": "b" "label": 1}]'], "line 2, character 14: not valid JSON"),
        (
            [{"text": "a", "label": 1}, [1]],
            'line 2: expected an object such as {"text": …, "label": …}, found an array',
        ),
        (["[1]"], "row 1: expected an object such as"),
        (['{"text": "a", "label": 1, "label": 0}'], "line 1: the key 'label' occurs more than once"),
        ([{"text": "a", "label": 1}, {"text": "cut \ud83d", "label": 1}], "row 2: text: unpaired surrogate \\ud83d"),
        (['{"text": "a", "label": ' + "1" * 5000 + "}"], "line 1: Exceeds the limit"),
        (['{"text": "a", "label": ' + "[" * 100_000 + "}"], "line 1: the JSON is nested too deeply"),
    ],
)
def test_a_row_that_is_none_is_named_with_its_place(rows, says, tmp_path):
    with pytest.raises(DataError, match=rf"rows\.jsonl can't be read as jsonl: .*{re.escape(says)}"):
        read(lines(tmp_path, *rows))


def test_bytes_that_are_no_utf_8_are_named_with_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a", "label": 1}\n{"text": "caf\xe9", "label": 1}\n')
    with pytest.raises(DataError, match="line 2: expected UTF-8 text, found the byte 0xe9"):
        read(path)
    path.write_bytes('{"text": "a", "label": 1}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="line 1: expected UTF-8 text, found UTF-16"):
        read(path)


def test_lines_that_end_with_a_carriage_return_alone_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a", "label": 1}\r{"text": "b", "label": 0}\r')
    with pytest.raises(DataError, match="line 1: lines end with a carriage return alone"):
        read(path)


def test_a_key_that_no_row_has_is_left_to_the_caller_with_the_keys_of_all_rows(tmp_path):
    path = lines(tmp_path, {"text": "a"}, {"text": "b", "lable": 1})
    table = read_files(str(path), ["text", "label"], [], Dialect())
    assert "label" not in table.columns
    assert table.available == ["text", "lable"]
