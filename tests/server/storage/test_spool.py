"""Files of whole updates: what is found again by the server after this one, and what is not."""

import struct

import google_crc32c
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fedmtl_core.errors import StoreError
from fedmtl_server.storage.spool import Spool, SpooledFile

HEADER = b"header"
PREAMBLE_BYTES = 32


def data_of(*parts):
    return [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts]


def read_back(spool, file, *sizes):
    buffers = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    spool.read(file.path, buffers)
    return [buffer.numpy().tobytes() for buffer in buffers]


def whole(header, *parts):
    """A file's bytes, as the module's documentation has them."""
    body = header + b"".join(parts)
    return (
        struct.pack("<8sQQII", b"FEDMTLU1", len(header), len(body) - len(header), google_crc32c.value(body), 0) + body
    )


FILE = whole(HEADER, b"0123456789", b"abc")


def is_whole_after(folder, data):
    """Whether a file of these bytes is taken for a whole update."""
    folder.mkdir(exist_ok=True)
    (folder / "0000.update").write_bytes(data)
    return bool(Spool(folder).scan())


@pytest.mark.parametrize("sync", [False, True])
def test_whole_updates_are_found_again_by_another_spool(sync, tmp_path):
    spool = Spool(tmp_path / "staging", sync=sync)
    assert spool.scan() == []  # the folder isn't there yet
    first = spool.write(HEADER, data_of(b"0123456789", b"abc"))
    second = spool.write(b"other", data_of(b"xyz"))
    assert first.read_bytes() == FILE
    another = Spool(tmp_path / "staging")
    found = another.scan()
    assert found == [SpooledFile(first, HEADER, 13), SpooledFile(second, b"other", 3)]
    assert read_back(another, found[0], 10, 3) == [b"0123456789", b"abc"]
    assert read_back(another, found[1], 3) == [b"xyz"]
    assert Spool(tmp_path / "staging").scan() == found  # looking changes nothing


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    updates=st.lists(
        st.tuples(st.binary(max_size=40), st.lists(st.binary(min_size=1, max_size=60), max_size=3)), max_size=5
    )
)
def test_whatever_is_written_is_found_and_read_bit_for_bit(tmp_path_factory, updates):
    folder = tmp_path_factory.mktemp("spool") / "staging"
    spool = Spool(folder)
    for header, parts in updates:
        spool.write(header, data_of(*parts))
    another = Spool(folder)
    found = another.scan()
    assert [file.header for file in found] == [header for header, _ in updates]
    for file, (_, parts) in zip(found, updates, strict=True):
        assert file.num_bytes == sum(map(len, parts))
        assert read_back(another, file, *map(len, parts)) == parts


def test_a_file_of_more_than_one_read_is_found_again(tmp_path):
    data = torch.arange(5_000_011, dtype=torch.int64).to(torch.uint8)
    spool = Spool(tmp_path)
    path = spool.write(HEADER, [data])
    assert Spool(tmp_path).scan() == [SpooledFile(path, HEADER, 5_000_011)]
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00" if data[-1] else b"\x01")
    assert Spool(tmp_path).scan() == []


@pytest.mark.parametrize("length", range(len(FILE)))
def test_a_truncated_file_holds_no_update(length, tmp_path):
    assert not is_whole_after(tmp_path, FILE[:length])


@pytest.mark.parametrize("offset", range(len(FILE) - 4))
def test_a_file_with_a_flipped_bit_holds_no_update(offset, tmp_path):
    """Wherever it is, but in the four bytes that mean nothing."""
    if offset >= 28:
        offset += 4
    for bit in range(8):
        damaged = bytearray(FILE)
        damaged[offset] ^= 1 << bit
        assert not is_whole_after(tmp_path, bytes(damaged)), bit


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(end=st.integers(0, len(FILE)), before=st.sampled_from([b"", bytes(len(FILE)), bytes(200), b"\xff" * 200]))
def test_a_torn_file_holds_no_update(tmp_path_factory, end, before):
    """Cut off before its preamble was written, over nothing or whatever an older file left."""
    torn = bytes(PREAMBLE_BYTES) + FILE[PREAMBLE_BYTES:][:end]
    assert not is_whole_after(tmp_path_factory.mktemp("spool"), torn + before[len(torn) :])


@pytest.mark.parametrize("end", range(PREAMBLE_BYTES, len(FILE)))
def test_a_file_torn_behind_its_preamble_holds_no_update(end, tmp_path):
    """A power cut may leave the preamble that was written last, and not what was written before it."""
    older = whole(HEADER, b"9876543210", b"cba!")
    assert not is_whole_after(tmp_path, FILE[:end] + older[end:])
    assert not is_whole_after(tmp_path, FILE[:end] + bytes(len(FILE) - end))


def test_a_discarded_file_holds_no_update_and_is_used_again(tmp_path):
    spool = Spool(tmp_path)
    path = spool.write(HEADER, data_of(b"0123456789"))
    spool.discard(path)
    assert path.read_bytes()[:PREAMBLE_BYTES] == bytes(PREAMBLE_BYTES)
    assert Spool(tmp_path).scan() == []
    assert spool.write(HEADER, data_of(b"abc")) == path
    assert spool.write(HEADER, data_of(b"xyz")) != path


def test_a_file_used_again_for_a_shorter_update_holds_that_alone(tmp_path):
    spool = Spool(tmp_path)
    path = spool.write(b"a long header", data_of(b"0123456789", b"abc"))
    spool.discard(path)
    assert spool.write(b"h", data_of(b"xy")) == path
    another = Spool(tmp_path)
    (found,) = another.scan()
    assert (found.header, found.num_bytes) == (b"h", 2)
    assert read_back(another, found, 2) == [b"xy"]


def test_what_was_damaged_is_named_and_discarded_by_who_finds_it_and_used_again(tmp_path):
    (tmp_path / "0000.update").write_bytes(FILE[:-1])
    (tmp_path / "0001.update").write_bytes(FILE)
    (tmp_path / "0002.update").write_bytes(bytes(PREAMBLE_BYTES) + FILE[PREAMBLE_BYTES:-1])  # it was never whole
    spool = Spool(tmp_path)
    with capture_logs() as logs:
        assert [file.path.name for file in spool.scan()] == ["0001.update"]
    assert [(line["event"], line["path"]) for line in logs] == [("update.damaged", str(tmp_path / "0000.update"))]
    assert spool.write(b"", []).name == "0002.update"
    (tmp_path / "0002.update").unlink()
    assert spool.write(b"new", data_of(b"xyz")).name == "0000.update"
    assert [(file.path.name, file.header) for file in Spool(tmp_path).scan()] == [  # the oldest first
        ("0001.update", HEADER),
        ("0000.update", b"new"),
    ]


def test_metrics_alone_are_a_header_without_data(tmp_path):
    spool = Spool(tmp_path)
    path = spool.write(b"metrics", [])
    assert path.read_bytes() == whole(b"metrics")
    assert Spool(tmp_path).scan() == [SpooledFile(path, b"metrics", 0)]
    spool.read(path, [])


def test_numbers_go_on_after_those_that_are_there(tmp_path):
    for name in ("0007.update", "10000.update", "notes.txt", "x.update"):
        (tmp_path / name).write_bytes(FILE)
    spool = Spool(tmp_path)
    assert {file.path.name for file in spool.scan()} == {"0007.update", "10000.update", "x.update"}
    assert spool.write(HEADER, data_of(b"abc")).name == "10001.update"
    assert (tmp_path / "0007.update").read_bytes() == FILE


def test_closing_removes_what_nobody_uses_and_leaves_the_rest(tmp_path):
    folder = tmp_path / "staging"
    spool = Spool(folder)
    kept, free = (spool.write(HEADER, data_of(data)) for data in (b"abc", b"xyz"))
    spool.discard(free)
    spool.close()
    assert list(folder.iterdir()) == [kept]
    spool.discard(kept)
    spool.close()
    assert not folder.exists()
    spool.close()


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["os.write", "os.pwrite", "_sync_data", "sync_folder"])
def test_a_disk_error_leaves_nothing_behind(where, tmp_path, monkeypatch):
    spool = Spool(tmp_path, sync=True)
    with monkeypatch.context() as patch:
        patch.setattr(f"fedmtl_server.storage.spool.{where}", full)
        with pytest.raises(OSError, match="No space left"):
            spool.write(HEADER, data_of(b"abc"))
    assert list(tmp_path.iterdir()) == []
    path = spool.write(HEADER, data_of(b"abc"))  # there is room again
    assert Spool(tmp_path).scan() == [SpooledFile(path, HEADER, 3)]


@pytest.mark.parametrize("where", ["os.write", "os.pwrite", "_sync_data"])
def test_a_disk_error_in_a_file_used_again_leaves_nothing_behind(where, tmp_path, monkeypatch):
    spool = Spool(tmp_path, sync=True)
    spool.discard(spool.write(HEADER, data_of(b"0123456789")))
    with monkeypatch.context() as patch:
        patch.setattr(f"fedmtl_server.storage.spool.{where}", full)
        with pytest.raises(OSError, match="No space left"):
            spool.write(HEADER, data_of(b"abc"))
    assert list(tmp_path.iterdir()) == []
    path = spool.write(HEADER, data_of(b"abc"))
    assert Spool(tmp_path).scan() == [SpooledFile(path, HEADER, 3)]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(StoreError, match=r"can't read .*0000\.update: No such file"):
        spool.read(tmp_path / "0000.update", data_of(b"abc"))
    (tmp_path / "0000.update").write_bytes(FILE[:10])
    with pytest.raises(StoreError, match=r"can't read .*0000\.update"):
        spool.read(tmp_path / "0000.update", data_of(b"abc"))
    (tmp_path / "0000.update").write_bytes(FILE[:-1])
    with pytest.raises(StoreError, match=r"0000\.update: the file is shorter than what was written to it"):
        spool.read(tmp_path / "0000.update", data_of(b"0123456789", b"abc"))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "0000.update").mkdir()
    with pytest.raises(StoreError, match=r"can't read .*: Is a directory"):
        Spool(tmp_path).scan()


def test_a_file_that_is_gone_is_discarded_without_a_word(tmp_path):
    spool = Spool(tmp_path)
    path = spool.write(HEADER, data_of(b"abc"))
    path.unlink()
    spool.discard(path)
    assert spool.write(HEADER, data_of(b"abc")).name == "0001.update"
