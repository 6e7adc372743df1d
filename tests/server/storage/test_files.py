"""Files that are written whole or not at all, and the gate for threads that write."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fedmtl_core.errors import StoreError
from fedmtl_server.storage.files import WriteGate, make_folder, move_into_place, write_errors, write_json, write_text
from fedmtl_server.storage.paths import checkpoint_path, checkpoint_rounds, state_path


def noted(name: str, calls: list[str], patch: pytest.MonkeyPatch, owner: object) -> None:
    real = getattr(owner, name)

    def call(*arguments: object) -> object:
        calls.append(name)
        return real(*arguments)

    patch.setattr(owner, name, call)


def test_a_gate_that_closes_waits_for_those_within(tmp_path):
    gate, inside, may_leave, order = WriteGate("closed"), threading.Event(), threading.Event(), []

    def write() -> None:
        with gate.entered():
            inside.set()
            may_leave.wait(10)
            order.append("written")

    def close() -> None:
        gate.close()
        order.append("closed")

    threads = [threading.Thread(target=write), threading.Thread(target=close)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    threads[1].join(0.1)
    assert order == []
    may_leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["written", "closed"]


def test_a_closed_gate_admits_nobody_and_says_why():
    gate = WriteGate("the folder is another server's")
    with gate.entered(), gate.entered():  # a thread may enter twice
        pass
    gate.close()
    gate.close()
    with pytest.raises(StoreError, match="the folder is another server's"), gate.entered():
        raise AssertionError("it was admitted")


def test_a_thread_that_fails_within_a_gate_leaves_it():
    gate = WriteGate("closed")
    with pytest.raises(ValueError, match="failed"), gate.entered():
        raise ValueError("failed")
    gate.close()  # and doesn't wait for ever


def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    calls: list[str] = []
    scratch, path = tmp_path / "file.tmp", tmp_path / "file"
    scratch.write_bytes(b"new")
    with monkeypatch.context() as patch:
        noted("fsync", calls, patch, os)
        noted("replace", calls, patch, Path)
        move_into_place(scratch, path)
    assert calls == ["fsync", "replace", "fsync"]  # of the file, and of its folder
    assert path.read_bytes() == b"new"
    assert not scratch.exists()


def test_a_file_that_need_not_outlast_a_power_failure_is_only_renamed(tmp_path, monkeypatch):
    calls: list[str] = []
    (tmp_path / "file.tmp").write_bytes(b"new")
    with monkeypatch.context() as patch:
        noted("fsync", calls, patch, os)
        move_into_place(tmp_path / "file.tmp", tmp_path / "file", sync=False)
    assert calls == []
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_text_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_text(path, "before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=f"can't write {path}: No space left on device"):
        write_text(path, "after")
    assert path.read_text() == "before"


def test_json_has_no_values_that_json_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "results.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_new_folders_are_flushed_from_the_outermost(tmp_path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr("fedmtl_server.storage.files.sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")  # they are there: nothing to flush
    assert synced == [tmp_path, tmp_path / "a"]


def test_an_error_of_the_system_names_the_path_that_was_written(tmp_path):
    with pytest.raises(StoreError, match=f"can't write {tmp_path}: Permission denied"), write_errors(tmp_path):
        raise PermissionError(13, "Permission denied", "some/other/file")


def test_the_rounds_of_checkpoints_are_read_from_their_names_and_other_files_are_ignored(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert checkpoint_rounds(tmp_path) == []
    for round_ in (12345, 3, 10):
        checkpoint_path(tmp_path, round_).touch()
    state_path(tmp_path, 4).touch()
    for name in ("round-0005.damaged", "round-0006.tmp", "round-x.safetensors", "model.safetensors"):
        (tmp_path / "checkpoints" / name).touch()
    assert checkpoint_rounds(tmp_path) == [3, 10, 12345]
    assert checkpoint_path(tmp_path, 3).name == "round-0003.safetensors"
    assert state_path(tmp_path, 3).name == "round-0003.state.safetensors"
