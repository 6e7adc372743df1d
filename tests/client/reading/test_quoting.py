"""TSV with quotes and without: the file tells which."""

import csv
from pathlib import Path

import pandas
import pytest

from fedmtl_core.errors import DataError
from tests.client.reading.support import read, read_with_log

GLUE = Path(__file__).parents[4] / "shared" / "data" / "glue"
TEXTS = ['He said "hi", twice', '"quoted"', "plain", "with, a comma", 'a 5" disk']


def tsv(tmp_path, *lines):
    path = tmp_path / "rows.tsv"
    path.write_text("".join(line + "\n" for line in ("text\tlabel", *lines)))
    return path


def decided(log):
    return [line["quoting"] for line in log if line["event"] == "data.quoting_decided"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_pandas_quotes_is_read_without_its_quotes(quoting, tmp_path):
    rows = [(text, str(number)) for number, text in enumerate(TEXTS)]
    frame = pandas.DataFrame(rows, columns=["text", "label"])
    frame.to_csv(tmp_path / "rows.tsv", sep="\t", index=False, quoting=quoting)
    found, log = read_with_log(tmp_path / "rows.tsv")
    assert (found, decided(log)) == (rows, ["minimal"])


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        (['"a\ttab"\t1', "x\t0"], [("a\ttab", "1"), ("x", "0")]),
        (['"two', 'lines"\t1', "x\t0"], [("two\nlines", "1"), ("x", "0")]),
        (['"all"\t1', '"cells"\t0'], [("all", "1"), ("cells", "0")]),  # R, without a text that has a quote
        (['"one, two"\t1', "x\t0"], [("one, two", "1"), ("x", "0")]),  # Excel quotes a comma, in TSV too
    ],
)
def test_cells_that_only_a_writer_of_quotes_would_have_quoted_are_read_without_quotes(lines, rows, tmp_path):
    found, log = read_with_log(tsv(tmp_path, *lines))
    assert (found, decided(log)) == (rows, ["minimal"])


def test_what_r_writes_is_read_without_its_quotes_and_row_names(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('"text"\t"label"\n"1"\t"He said ""hi"""\t"1"\n"2"\t"plain"\t"0"\n')  # qmethod = "double"
    assert read(path) == [('He said "hi"', "1"), ("plain", "0")]
    path.write_text('"text"\t"label"\n"1"\t"one row"\t"1"\n"2"\t"plain"\t"0"\n')
    assert read(path) == [("one row", "1"), ("plain", "0")]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('"text"\t"label"\n"17"\t"a"\t"1"\n"3"\t"b"\t"0"\n', [("a", "1"), ("b", "0")]),  # shuffled
        ('"text"\t"label"\n"17"\t"two\nlines"\t1\n"30"\t"b"\tNA\n', [("two\nlines", "1"), ("b", "NA")]),  # a subset
        ('"text"\t"label"\n"1"\t"a"\t"1"\n', [("a", "1")]),  # one row
    ],
)
def test_row_names_that_r_keeps_when_rows_are_shuffled_or_left_out_are_not_read(content, rows, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text(content)
    found, log = read_with_log(path)
    assert found == rows
    assert log[-1] == {
        "event": "data.extra_column_dropped",
        "file": str(path),
        "columns": 2,
        "dropped": "first cell of each row: its number",
    }
    (tmp_path / "rows.csv").write_text(content.replace("\t", ","))
    assert read(tmp_path / "rows.csv") == rows


@pytest.mark.parametrize(
    "content",
    [
        '"text"\t"label"\n"17"\t"a"\t"1"\n"17"\t"b"\t"0"\n',  # row names are distinct
        '"text"\t"label"\n17\t"a"\t"1"\n3\t"b"\t"0"\n',  # and quoted
        '"text"\tlabel\n"17"\t"a"\t"1"\n"3"\t"b"\t"0"\n',  # like the header
    ],
)
def test_a_first_cell_that_r_would_not_have_written_so_is_no_row_name(content, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=r"line 2: expected 2 fields, .* found 3"):
        read(path, quoting="minimal")


@pytest.mark.parametrize(
    "lines",
    [
        ['"oh\t1', "x\t0"],
        ['"quoted" and more\t1', "x\t0"],
        ['the "best"\t1', '"great"\t0'],
        ['"great movie"\t1', "so so\t0"],
        ['"great, really"\t1', "one, two\t0"],
        ['a ""b"" c\t1', '"\t0'],
    ],
)
def test_quotes_that_no_writer_of_quotes_would_have_left_so_are_the_texts_own(lines, tmp_path):
    found, log = read_with_log(tsv(tmp_path, *lines))
    assert (found, decided(log)) == ([tuple(line.split("\t")) for line in lines], ["none"])


def test_a_file_without_quotes_at_the_beginning_of_a_cell_has_nothing_to_decide(tmp_path):
    assert read_with_log(tsv(tmp_path, 'a 5" disk\t1')) == ([('a 5" disk', "1")], [])


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            ['"a ""b"" c"\t1', 'he "said"\t0'],
            "1 quoted cell .* and 1 unquoted cell with quotes: set data.quoting to minimal",
        ),
        (['"He said \\"hi\\""\t1', '"x"\t0'], "1 quoted cell with a backslash .*in R, qmethod = .double."),
    ],
)
def test_a_file_that_speaks_for_both_is_refused_unless_it_is_said(lines, says, tmp_path):
    with pytest.raises(DataError, match=says):
        read(tsv(tmp_path, *lines))
    assert read(tsv(tmp_path, *lines), quoting="none") == [tuple(line.split("\t")) for line in lines]


def test_much_more_evidence_for_one_decides_and_what_contradicts_it_is_still_refused(tmp_path):
    plain = [f'he "said" {number}\t1' for number in range(20)]
    assert len(read(tsv(tmp_path, '"a ""b"" c"\t1', *plain))) == 21
    quoted = [f'"he ""said"" {number}"\t1' for number in range(20)]
    with pytest.raises(DataError, match="line 2: the quote that opens a cell is closed before"):
        read(tsv(tmp_path, '"a" b\t1', *quoted))


def test_a_long_cell_is_weighed_like_any_other(tmp_path):
    rows = [("a\tword " * 50_000, "1"), ("plain", "0")]
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "rows.tsv", sep="\t", index=False)
    assert read(tmp_path / "rows.tsv") == rows


def test_without_a_header_the_first_row_counts(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('"He said ""hi"""\t1\n')
    assert read(path, "1", "2", header="none") == [('He said "hi"', "1")]
    path.write_text('He said "hi"\t1\n"great"\t0\n')
    assert read(path, "1", "2", header="none") == [('He said "hi"', "1"), ('"great"', "0")]


def test_a_setting_decides_without_a_look(tmp_path):
    path = tsv(tmp_path, '"a ""b"""\t1')
    assert read_with_log(path, quoting="none") == ([('"a ""b"""', "1")], [])
    assert read_with_log(path, quoting="minimal") == ([('a "b"', "1")], [])
    (tmp_path / "rows.csv").write_text('text,label\n"oh,1\n')
    assert read(tmp_path / "rows.csv", quoting="none") == [('"oh', "1")]


class TestRowsOfOneWidthEachWay:
    """Lines of a quoted file may all have as many cells as each other."""

    @staticmethod
    def file(tmp_path, content):
        path = tmp_path / "rows.tsv"
        path.write_bytes(content.encode())
        return path

    @pytest.mark.parametrize(
        ("content", "wanted", "rows"),
        [
            ('"text"\n"hello"\n"a\nb"\n"foo"\n', ["text"], [("hello",), ("a\nb",), ("foo",)]),
            ('"id"\t"text"\t"label"\n"1"\t"a\nb"\t"pos"\n', ["text", "label"], [("a\nb", "pos")]),
            ('id\ttext\tlabel\n1\t"a\nb"\tpos\n', ["text", "label"], [("a\nb", "pos")]),
            ('text\nhello\n"a\nb"\n"the ""best"""\n', ["text"], [("hello",), ("a\nb",), ('the "best"',)]),
            ('"text"\t"label"\nthe "best"\t1\n"great"\t0\n', ["text", "label"], [('the "best"', "1"), ("great", "0")]),
        ],
    )
    def test_a_quoted_header_or_its_width_tells(self, content, wanted, rows, tmp_path):
        found, log = read_with_log(self.file(tmp_path, content), *wanted)
        assert (found, decided(log)) == (rows, ["minimal"])

    def test_one_column_that_fits_both_is_refused_unless_it_is_said(self, tmp_path):
        path = self.file(tmp_path, 'text\nhello\n"a\nb"\nfoo\n')
        with pytest.raises(DataError, match=r"one column, and 2 lines with quotes .*: set data.quoting to none or to"):
            read(path, "text")
        assert read(path, "text", quoting="minimal") == [("hello",), ("a\nb",), ("foo",)]
        assert read(path, "text", quoting="none") == [("hello",), ('"a',), ('b"',), ("foo",)]

    @pytest.mark.parametrize(
        "lines",
        [
            ["text", '"a', 'b"', 'he "said"'],  # a writer of quotes would have quoted the last one
            ["text", '"a', "b"],
            ["text\tlabel", '"a\t1', 'b"\t0', "c\t1"],  # every line is a complete row
            ["text\tlabel", '1\t"great"\t0', "2\tbad\t1"],
        ],
    )
    def test_what_is_no_sign_of_quoting_is_read_word_for_word(self, lines, tmp_path):
        width = lines[-1].count("\t") + 1
        wanted = lines[0].split("\t")
        rows = [tuple(line.split("\t"))[width - len(wanted) :] for line in lines[1:]]
        found, log = read_with_log(self.file(tmp_path, "".join(line + "\n" for line in lines)), *wanted)
        assert (found, decided(log)) == (rows, ["none"])


@pytest.mark.skipif(not GLUE.is_dir(), reason="the real rows are not at hand (../shared/data/glue)")
@pytest.mark.parametrize("path", sorted(GLUE.glob("*/*.tsv")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_glues_files_without_quoting_are_read_word_for_word(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    header, rows = lines[0].split("\t"), [tuple(line.split("\t")) for line in lines[1:] if line]
    assert read(path, *header) == rows
