"""What an address means: files, folders and patterns, compressed or not, here or at a URL."""

import base64
import bz2
import gzip
import lzma
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pandas
import pytest
import zstandard

from fedmtl_client.reading import shown
from fedmtl_core.errors import DataError
from tests.client.reading.support import read

CSV = b"text,label\na,1\nb,0\n"
ROWS = [("a", "1"), ("b", "0")]
CONTENTS = {
    ".csv": CSV,
    ".tsv": CSV.replace(b",", b"\t"),
    ".jsonl": b'{"text": "a", "label": "1"}\n{"text": "b", "label": "0"}\n',
    ".json": b'[{"text": "a", "label": "1"}, {"text": "b", "label": "0"}]',
    ".parquet": pandas.DataFrame(ROWS, columns=["text", "label"]).to_parquet(),
}
CONTENTS[".ndjson"] = CONTENTS[".jsonl"]
COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class TestFiles:
    @pytest.mark.parametrize("suffix", CONTENTS)
    @pytest.mark.parametrize("compression", ["", *COMPRESS])
    @pytest.mark.parametrize("case", [str.lower, str.upper])
    def test_a_suffix_says_the_format_in_any_case(self, suffix, compression, case, tmp_path):
        content = COMPRESS[compression](CONTENTS[suffix]) if compression else CONTENTS[suffix]
        assert read(write(tmp_path / case(f"rows.v2{suffix}{compression}"), content)) == ROWS

    @pytest.mark.parametrize("compression", COMPRESS)
    def test_compressed_files_one_after_the_other_are_read_to_the_end(self, compression, tmp_path):
        compress = COMPRESS[compression]
        assert read(write(tmp_path / f"rows.csv{compression}", compress(CSV) + compress(b"c,1\n"))) == [
            *ROWS,
            ("c", "1"),
        ]

    @pytest.mark.parametrize("compression", COMPRESS)
    def test_a_compressed_file_that_ends_too_early_is_refused(self, compression, tmp_path):
        content = COMPRESS[compression](CSV + b"".join(b"%d,1\n" % (number**5) for number in range(20_000)))
        path = write(tmp_path / f"rows.csv{compression}", content[: len(content) // 2])
        with pytest.raises(DataError, match=rf"rows\.csv{compression} can't be read as csv: \S"):
            read(path)

    @pytest.mark.parametrize("compression", COMPRESS)
    def test_a_file_that_is_not_compressed_as_its_name_says_is_refused(self, compression, tmp_path):
        with pytest.raises(DataError, match=rf"rows\.csv{compression} can't be read as csv: \S"):
            read(write(tmp_path / f"rows.csv{compression}", CSV))

    @pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.gz", "rows.csv.zip", ".csv"])
    def test_another_suffix_is_refused_with_those_that_are_read(self, name, tmp_path):
        with pytest.raises(
            DataError, match=r"expected a file ending in \.tsv, .*, alone or followed by \.gz, .* got '"
        ):
            read(write(tmp_path / name, CSV))

    def test_a_name_with_the_signs_of_a_pattern_is_a_name_where_there_is_such_a_file(self, tmp_path):
        write(tmp_path / "1.csv", b"text,label\nwrong,1\n")
        assert read(write(tmp_path / "[1].csv", CSV)) == ROWS
        assert read(write(tmp_path / "x[v2]" / "*.csv", CSV)) == ROWS

    def test_no_file_is_left_to_the_caller(self, tmp_path):
        for address in ("rows.csv", "*.csv", "x/[v2]/rows.csv"):
            with pytest.raises(FileNotFoundError):
                read(tmp_path / address)

    def test_a_path_that_is_too_long_is_refused(self):
        with pytest.raises(DataError, match=r"x\.csv can't be read: File name too long"):
            read("x" * 300 + ".csv")


class TestFolders:
    def spark(self, folder):
        """A folder as Spark writes it."""
        write(
            folder / "part-00001.snappy.parquet", pandas.DataFrame([("b", "0")], columns=["text", "label"]).to_parquet()
        )
        write(
            folder / "part-00000.snappy.parquet", pandas.DataFrame([("a", "1")], columns=["text", "label"]).to_parquet()
        )
        write(folder / "_SUCCESS", b"")
        write(folder / ".part-00000.snappy.parquet.crc", b"crc")
        write(folder / "_temporary" / "0" / "part-00000.snappy.parquet", b"half")
        return folder

    @pytest.mark.parametrize("address", ["", "/", "/*.parquet", "/part-0000[01].*", "/**/*.parquet"])
    def test_parts_are_read_in_the_order_of_their_names_and_hidden_files_are_not(self, address, tmp_path):
        assert read(str(self.spark(tmp_path / "rows")) + address) == ROWS

    def test_a_pattern_goes_into_folders(self, tmp_path):
        write(tmp_path / "rows" / "2" / "x.csv", b"text,label\nb,0\n")
        write(tmp_path / "rows" / "1" / "x.csv.gz", gzip.compress(b"text,label\na,1\n"))
        assert read(tmp_path / "rows" / "*" / "*.csv*") == ROWS

    def test_a_part_without_rows_is_no_matter_and_no_row_in_any_is_refused(self, tmp_path):
        write(tmp_path / "rows" / "1.csv", b"text,label\n")
        with pytest.raises(DataError, match=r"rows/1\.csv has no rows$"):
            read(tmp_path / "rows")
        write(tmp_path / "rows" / "2.csv", CSV)
        assert read(tmp_path / "rows") == ROWS

    @pytest.mark.parametrize(
        ("files", "says"),
        [
            ({}, "rows is a folder without data files"),
            ({"_SUCCESS": b""}, "rows is a folder without data files"),
            ({"1.csv": CSV, "2.tsv": CSV}, r"rows has files of several formats: .*1\.csv, .*2\.tsv"),
            ({"1.csv": CSV, "README.md": b""}, r"expected a file ending in .* got '.*README\.md'"),
            ({"label=0/1.csv": CSV}, r"rows has subfolders \(label=0\); give a pattern such as"),
            ({"_delta_log/0.json": b"{}", "1.parquet": b""}, "rows is a Delta table"),
            ({"1.csv": CSV, "2.csv": b"text\nb\n"}, r"2\.csv has no column 'label', which .*1\.csv has"),
            ({"1.csv": b"text\nb\n", "2.csv": CSV}, r"1\.csv has no column 'label', which .*2\.csv has"),
            ({"1.csv": CSV, "2.csv": b"text,label\na\n"}, r"2\.csv can't be read as csv: line 2: expected 2 fields"),
        ],
    )
    def test_a_folder_that_has_no_one_meaning_is_refused(self, files, says, tmp_path):
        (tmp_path / "rows").mkdir()
        for name, content in files.items():
            write(tmp_path / "rows" / name, content)
        with pytest.raises(DataError, match=says):
            read(tmp_path / "rows")

    def test_files_without_a_header_need_the_same_number_of_columns(self, tmp_path):
        write(tmp_path / "1.csv", b"a,1\n")
        write(tmp_path / "2.csv", b"b,0,x\n")
        with pytest.raises(DataError, match=r"2\.csv has 3 columns, .*1\.csv has 2: without a header"):
            read(tmp_path / "*.csv", "1", "2", header="none")

    def test_parts_that_declare_other_class_names_are_refused(self, tmp_path):
        import datasets

        for part, names in enumerate((["no", "yes"], ["yes", "no"])):
            features = datasets.Features({"label": datasets.ClassLabel(names=names)})
            datasets.Dataset.from_dict({"label": [0]}, features=features).to_parquet(tmp_path / f"{part}.parquet")
        with pytest.raises(
            DataError, match=r"1\.parquet declares the class names label: yes, no, .* declares label: no"
        ):
            read(tmp_path / "*.parquet", "label")


class Files(BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        name = self.path.partition("?")[0].removeprefix("/")
        if name == "login.csv":
            return self.answer(b"<html>", "text/html; charset=utf-8")
        if name == "elsewhere.csv":
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere)
            return self.end_headers()
        if name == "secret.csv" and not self.headers.get("Authorization"):
            return self.send_error(401)
        content = {"cut.csv": CSV, "secret.csv": CSV, "a%20b.csv": CSV}.get(name) or CONTENTS.get(
            f".{name.partition('.')[2]}"
        )
        if name == "rows.csv.gz":
            content = gzip.compress(CSV)
        return self.answer(content, missing=100 * (name == "cut.csv")) if content else self.send_error(404)

    def answer(self, content, type_="application/octet-stream", missing=0):
        self.send_response(200)
        self.send_header("Content-Type", type_)
        self.send_header("Content-Length", str(len(content) + missing))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def http_server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        server.seen, server.url = [], f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture
def server():
    with http_server() as running:
        yield running


class TestUrls:
    @pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.parquet", "rows.csv.gz", "a b.csv"])
    def test_a_file_of_a_web_server_is_read_once_and_leaves_no_copy(self, name, server, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert read(f"{server.url}/{name}?version=3") == ROWS
        assert [path for path, _ in server.seen] == [f"/{name.replace(' ', '%20')}?version=3"]
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("none.txt", r"expected a file ending in .* got 'http://127\.0\.0\.1:\d+/none\.txt"),
            ("none.csv.xz", r"/none\.csv\.xz\?key=… can't be downloaded: the server answers 404 Not Found"),
            ("login.csv", r"/login\.csv\?key=… can't be downloaded: the server answers with a web page"),
            ("cut.csv", r"/cut\.csv\?key=… can't be downloaded: the connection ended after 19 of 119 bytes"),
            ("secret.csv", r"/secret\.csv\?key=… can't be downloaded: the server answers 401 .*into ~/\.netrc"),
        ],
    )
    def test_what_a_web_server_does_not_give_is_refused_and_a_querys_values_are_not_shown(self, name, says, server):
        with pytest.raises(DataError, match=says) as refused:
            read(f"{server.url}/{name}?key=hidden")
        assert "hidden" not in str(refused.value)

    def test_a_server_that_is_not_there_is_named_with_the_address(self):
        with http_server() as gone:
            pass
        with pytest.raises(DataError, match=rf"{gone.url}/rows\.csv can't be downloaded: .*refused"):
            read(f"{gone.url}/rows.csv")

    def test_name_and_password_come_from_netrc_and_go_to_their_host_alone(self, server, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine 127.0.0.1\nlogin me\npassword secret\n")
        netrc.chmod(0o600)
        assert read(f"{server.url}/secret.csv") == ROWS
        login = "Basic " + base64.b64encode(b"me:secret").decode()
        with http_server() as other:
            server.elsewhere = f"{other.url}/rows.csv"
            assert read(f"{server.url}/elsewhere.csv") == ROWS
        assert [seen for _, seen in server.seen + other.seen] == [login, login, None]

    def test_a_netrc_that_is_none_is_refused_without_its_words(self, server, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".netrc").write_text("secret\n")
        with pytest.raises(DataError, match=r"~/\.netrc can't be read") as refused:
            read(f"{server.url}/rows.csv")
        assert "secret" not in str(refused.value)

    @pytest.mark.parametrize(
        ("address", "says"),
        [
            (
                "s3://bucket/train.csv",
                r"s3://bucket/train\.csv can't be read: .* is not installed \(pip install s3fs\)",
            ),
            (
                "gs://bucket/train.csv",
                r"gs://bucket/train\.csv can't be read: .* is not installed \(pip install gcsfs\)",
            ),
            ("nosuch://a/train.csv", r"nosuch://a/train\.csv can't be read: .*\. Expected a path, http://"),
            ("memory://none/train.csv", r"memory://none/train\.csv can't be read: there is no such file"),
            ("memory://none/*.csv", r"no file matches memory://none/\*\.csv"),
        ],
    )
    def test_what_no_file_system_has_is_refused_with_the_address(self, address, says):
        with pytest.raises(DataError, match=says):
            read(address)

    @pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
    def test_other_schemes_are_read_by_the_file_systems_of_fsspec(self, suffix):
        storage = fsspec.filesystem("memory")
        try:
            storage.pipe(f"/bucket/rows/part-1{suffix}", CONTENTS[suffix])
            storage.pipe("/bucket/rows/_SUCCESS", b"")
            storage.pipe(f"/bucket/rows/part-2{suffix}.gz", gzip.compress(CONTENTS[suffix]))
            assert read(f"memory://bucket/rows/part-1{suffix}") == ROWS
            assert read("memory://bucket/rows") == ROWS * 2
            assert read("memory://bucket/rows/part-*") == ROWS * 2
            storage.pipe("/bucket/rows/part-3.txt", b"")
            with pytest.raises(DataError, match=r"got 'memory://bucket/rows/part-3\.txt'"):
                read("memory://bucket/rows")
        finally:
            storage.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("rows/train.csv", "rows/train.csv"),
        ("C:\\rows\\train.csv", "C:\\rows\\train.csv"),
        ("https://example.org/train.csv", "https://example.org/train.csv"),
        ("https://me:secret@example.org:8443/a%20b.csv#x", "https://…@example.org:8443/a%20b.csv"),
        ("s3://bucket/x.csv?X-Amz-Signature=secret&y=", "s3://bucket/x.csv?X-Amz-Signature=…&y=…"),
        ("https://[secret/x.csv", "https://…"),
    ],
)
def test_an_address_is_shown_as_given_without_what_may_be_secret(address, said):
    assert shown(address) == said
