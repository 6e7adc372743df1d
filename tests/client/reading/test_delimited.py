"""CSV and TSV: which cells belong together, and what is refused."""

import csv
import io

import pandas
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedmtl_client.reading import Dialect, read_files
from fedmtl_client.reading.delimited import read as read_delimited
from fedmtl_client.reading.errors import MalformedError
from fedmtl_core.errors import DataError
from tests.client.reading.support import read, read_with_log

TEXTS = [
    'it\'s "great"',
    "NA",
    "",
    "1.5",
    "2020-01-01",
    "two\nlines, with a comma",
    "tab\tin",
    " spaces ",
    "null",
    "01",
]


def file(tmp_path, content, name="rows.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_pythons_csv_module_and_pandas_write_is_read_word_for_word(quoting, ending, tmp_path):
    rows = [(text, str(number)) for number, text in enumerate(TEXTS)]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as out:
        csv.writer(out, quoting=quoting, lineterminator=ending).writerows([("text", "label"), *rows])
    assert read(path) == rows
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False, quoting=quoting, lineterminator=ending)
    assert read(path) == rows


@given(
    rows=st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=3, max_size=3), min_size=1, max_size=8),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    delimiter=st.sampled_from([",", "\t"]),
)
def test_whatever_a_writer_with_quotes_writes_comes_back(rows, quoting, delimiter):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=quoting).writerows([["a", "b", "c"], *rows])
    content = out.getvalue().encode()
    try:
        table = read_delimited(lambda: io.BytesIO(content), "rows", delimiter, ["a", "b", "c"], Dialect("minimal"))
    except MalformedError as error:
        assume("a complete row" not in str(error))  # rows such as '",,\n"', for which nobody can tell
        raise
    assert [list(row) for row in zip(*table.columns.values(), strict=True)] == rows


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text\nI like it, really\nplain\n", r"line 2: expected 1 field, as in the header \(text\), found 2: 'I like"),
        ("a,label\nx,1\ny, z,0\n", "line 3: expected 2 fields, .* found 3: 'y, z,0'. If a comma belongs to a text"),
        ("a,label\nx,1\ny\n", "line 3: expected 2 fields, .* found 1: 'y'. Complete the row"),
        ("a,label\n7,x,1\n", "line 2: expected 2 fields, .* found 3"),  # one row counts nothing up
        ("a,label\n7,x,1\n9,x,1\n", "line 2: expected 2 fields, .* found 3"),
        ("a,label\n1,x,\n2,x,\n", "line 2: expected 2 fields, .* found 3.* numbers, .*; if .* an extra comma"),
        ("a,label\n1,x,1\n2,x,1\n3,y\n", "line 2: expected 2 fields, .* found 3"),
        ('a,label\n"two\nlines",1\nx,y,0\n', "line 4: expected 2 fields"),
        ('a,label\n"two\nlines",1,2\n', r"lines 2 to 3: expected 2 fields, .* found 3"),
    ],
)
def test_a_row_of_more_or_fewer_fields_is_named_with_its_line(content, says, tmp_path):
    with pytest.raises(DataError, match=rf"rows\.csv can't be read as csv: {says}"):
        read(file(tmp_path, content), "a")


def test_a_long_row_is_shown_by_its_beginning(tmp_path):
    with pytest.raises(DataError, match="found 2: '" + "x" * 60 + r"'…\. If") as refused:
        read(file(tmp_path, "a\n" + "x" * 5_000 + ",y\n"), "a")
    assert len(str(refused.value)) < 500


def test_an_index_without_a_name_is_left_out_and_told(tmp_path):
    frame = pandas.DataFrame({"text": ["good, really", "bad"], "label": [1, 0]}, index=[7, 3])
    frame.to_csv(tmp_path / "rows.csv")
    rows, log = read_with_log(tmp_path / "rows.csv")
    assert rows == [("good, really", "1"), ("bad", "0")]
    assert log == [{"event": "data.columns_without_name_ignored", "file": str(tmp_path / "rows.csv"), "columns": [1]}]


@pytest.mark.parametrize(
    ("content", "dropped"),
    [
        ("text,label\ngood,1,\nbad,0,\n", "last cell of each row: empty"),
        ('"text","label"\n"1","good",1\n"2","bad",0\n', "first cell of each row: its number"),  # R's write.table
        ("text,label\n0,good,1\n1,bad,0\n", "first cell of each row: its number"),
    ],
)
def test_a_cell_more_than_the_header_is_dropped_and_told_where_it_is_certain(content, dropped, tmp_path):
    path = file(tmp_path, content)
    rows, log = read_with_log(path)
    assert rows == [("good", "1"), ("bad", "0")]
    assert log == [{"event": "data.extra_column_dropped", "file": str(path), "columns": 2, "dropped": dropped}]


def test_a_header_that_alone_ends_with_a_comma_and_blank_lines_move_no_column(tmp_path):
    assert read(file(tmp_path, "text,label,\ngood,1\nbad,0\n")) == [("good", "1"), ("bad", "0")]
    assert read(file(tmp_path, "\n\ntext,label\n\ngood,1\n   \nbad,0\n\n")) == [("good", "1"), ("bad", "0")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            'text,label\na,1\n"oh,0\nb,1\nwhat" a film,0\n',
            "line 5: the quote that opens a cell in line 3 is closed before",
        ),
        ('text,label\na,1\n"oh" no,0\n', "line 3: the quote that opens a cell is closed before the cell ends"),
        ('text,label\n"He said \\"hi\\"",1\n', "line 2: the quote that opens a cell is closed before"),
        ('text,label\na,1\n"oh,0\nb,1\n', "line 3: the quote that opens a cell is never closed"),
        (
            'text,label\na,1\n"oh,0\nb,1\nend",0\nc,1\nd,0\n',
            "lines 3 to 5: .* joins 3 lines into one row, but each line is a complete row",
        ),
        (
            'text,label\n"great,1.5\nscreen 5",2.25\nfoo,3.75\nbar,4.1\n',
            "lines 2 to 3: .* joins 2 lines into one row, but each line is a complete row",
        ),
    ],
)
def test_a_stray_quote_that_swallows_rows_is_said_with_its_line(content, says, tmp_path):
    with pytest.raises(DataError, match=rf"can't be read as csv: {says}"):
        read(file(tmp_path, content))


@pytest.mark.parametrize(
    "text", ["Dear all,\nkind regards,\nA", "one, two\nthree, four", "no comma\nat all", '"quoted"\n,', "\n\n"]
)
def test_a_text_of_several_lines_is_one_text(text, tmp_path):
    rows = [(text, "1"), ("plain", "0"), ("more", "1")]
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "rows.csv", index=False)
    assert read(tmp_path / "rows.csv") == rows


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("tea,5\nmilk", ["1", "0", "1", "0"]),  # classes, all known
        ("tea, 5\nmilk", ["2.25", "3.75", "4.1"]),  # no other number has a blank before it
        ("great,x\nscreen 5", ["2.25", "3.75", "4.1"]),
        ("great,1.5\nscreen 5", ["2.25"]),  # nothing to compare with
    ],
)
def test_a_text_whose_lines_could_be_rows_is_one_text_and_told_where_nothing_says_more(text, labels, tmp_path):
    rows = [(text, labels[0]), *(("plain", label) for label in labels[1:])]
    path = tmp_path / "rows.csv"
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)
    found, log = read_with_log(path)
    assert found == rows
    assert log == [{"event": "data.multi_line_cells", "file": str(path), "rows": 1, "first": "lines 2 to 3"}]


def test_a_text_above_the_csv_modules_own_limit_is_read(tmp_path):
    text = "a word, " * 50_000
    pandas.DataFrame([(text, "1")], columns=["text", "label"]).to_csv(tmp_path / "rows.csv", index=False)
    assert read(tmp_path / "rows.csv") == [(text, "1")]


def test_a_name_that_two_columns_have_is_refused_if_it_is_asked_for_alone(tmp_path):
    path = file(tmp_path, "text,note,note,label\na,x,y,1\n")
    assert read(path) == [("a", "1")]
    with pytest.raises(DataError, match=r"rows\.csv can't be read as csv: 2 columns have the name 'note'"):
        read(path, "note")


def test_a_column_that_is_not_there_is_left_to_the_caller_with_the_names_that_are(tmp_path):
    table = read_files(str(file(tmp_path, "words,,label\na,b,1\n")), ["text", "label"], [], Dialect())
    assert dict(table.columns) == {"label": ["1"]}
    assert table.available == ["words", "(without a name)", "label"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text,label\nok,1\ncafé,0\n".encode("latin-1"), "line 3: expected UTF-8 text, found the byte 0xe9"),
        ("text,label\nok,1\n".encode("utf-16"), "line 1: expected UTF-8 text, found UTF-16"),
        (b"text,label\n" + b"ok,1\n" * 9_999 + b"\xff,0\n", "line 10,001: expected UTF-8 text, found the byte 0xff"),
        (b"", "the file is empty: expected a header"),
    ],
)
def test_a_file_that_is_no_utf_8_is_named_with_the_line(content, says, tmp_path):
    with pytest.raises(DataError, match=says):
        read(file(tmp_path, content))


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    assert read(file(tmp_path, "text,label\nok,1\n".encode("utf-8-sig"))) == [("ok", "1")]
    assert read(file(tmp_path, '"text",label\nok,1\n'.encode("utf-8-sig"))) == [("ok", "1")]


class TestWithoutHeader:
    COLA = 'gj04\t1\t\tOur friends won\'t buy this.\nbc80\t0\t*\tThey "drank" the pub.\n'

    def test_columns_are_numbers_from_1(self, tmp_path):
        path = file(tmp_path, self.COLA, "cola.tsv")
        rows = [("Our friends won't buy this.", "1"), ('They "drank" the pub.', "0")]
        assert read(path, "4", "2", header="none") == rows
        assert read(file(tmp_path, "1,a\n0,b\n"), "2", "1", header="none") == [("a", "1"), ("b", "0")]

    def test_the_numbers_that_there_are_are_told(self, tmp_path):
        table = read_files(str(file(tmp_path, self.COLA, "cola.tsv")), ["5"], [], Dialect(header="none"))
        assert (dict(table.columns), table.available) == ({}, ["1", "2", "3", "4"])

    def test_a_row_of_more_fields_than_the_first_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="line 2: expected 2 fields, as in the first row, found 3"):
            read(file(tmp_path, "1,a\n0,b,c\n"), "1", header="none")

    def test_other_formats_have_no_header(self, tmp_path):
        with pytest.raises(
            DataError, match=r"data\.quoting and data\.header apply to CSV and TSV only; .*rows\.jsonl is neither"
        ):
            read(file(tmp_path, "{}", "rows.jsonl"), header="none")
