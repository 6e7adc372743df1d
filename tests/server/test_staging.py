"""Pooled staging, in memory and beyond."""

import pytest
import torch

from fedmtl_core.errors import UnavailableError
from fedmtl_core.layout import Layout
from fedmtl_server.staging import StagingPool

LAYOUTS = [
    Layout.of("shared", {"a": torch.zeros(100)}),
    Layout.of("task:x", {"b": torch.zeros(3), "c": torch.zeros(0)}),
]


def test_released_memory_is_used_again(tmp_path):
    pool = StagingPool(10_000, tmp_path / "spool")
    first = pool.stage(LAYOUTS)
    buffers = {id(component.buffer) for component in first.components.values()}
    assert pool.used_bytes == 412
    first.release()
    first.release()
    assert pool.used_bytes == 0
    assert {id(component.buffer) for component in pool.stage(LAYOUTS).components.values()} == buffers


def test_what_does_not_fit_in_memory_is_staged_in_files_that_leave_nothing_behind(tmp_path):
    pool = StagingPool(500, tmp_path / "spool")
    staged = [pool.stage(LAYOUTS) for _ in range(3)]
    assert pool.used_bytes <= 500
    for number, update in enumerate(staged):
        update.components["shared"].views()["a"].fill_(number)
    for number, update in enumerate(staged):
        assert update.components["shared"].views()["a"].eq(number).all()
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_disk_without_room_is_an_error_and_not_the_end_of_the_process(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UnavailableError, match=r"no room to stage an update of 400 bytes: .*No space left"):
        StagingPool(0, tmp_path).stage(LAYOUTS)


def test_components_without_bytes_are_staged_too(tmp_path):
    pool = StagingPool(0, tmp_path)
    assert pool.stage([Layout.of("task:x", {"c": torch.zeros(0)})]).components["task:x"].buffer.numel() == 0
