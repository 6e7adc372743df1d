"""Finished cells, and how an experiment goes on with them."""

import json

import pytest

from fedmtl_core.errors import ConfigError, StoreError
from fedmtl_experiment.cells import Cell
from fedmtl_experiment.results import CellResult, Folder, write_atomically
from tests.experiment.support import outcome, result


def test_a_result_is_read_as_it_was_written():
    written = result("local", 1, 0.7, tasks={"sst2": outcome(0.7, 0.8, by_client={"a": 0.6, "b": 0.8})}, bytes_up=None)
    assert CellResult.from_json(written.to_json()) == written


def test_finished_cells_are_found_and_others_are_not(tmp_path):
    folder, done = Folder(tmp_path), result("mtl", 1, 0.7)
    folder.save(done)
    folder.save(result("mtl", 9, 0.7))  # of a seed that isn't planned
    planned = {cell: {"base": "mtl"} for cell in (done.cell, Cell("tiny", "toy", "mtl", 2))}
    assert folder.finished(planned) == {done.cell: done}


def test_a_cell_that_was_computed_otherwise_is_an_error_that_says_what_and_what_to_do(tmp_path):
    folder, done = Folder(tmp_path), result("mtl", 1, 0.7, inputs={"set.training.num_rounds": 5})
    folder.save(done)
    with pytest.raises(
        ConfigError,
        match=r"mtl-1\.json was computed with another configuration \(set\.training\.num_rounds: the file has 5, the "
        r"configuration 6\): choose another folder with --results, or remove",
    ):
        folder.finished({done.cell: {"set.training.num_rounds": 6}})


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 99}'])
def test_a_file_that_is_no_result_is_named(content, tmp_path):
    folder, done = Folder(tmp_path), result("mtl", 1, 0.7)
    folder.save(done).write_text(content)
    with pytest.raises(StoreError, match=r"mtl-1\.json can't be read: .*; remove it to compute the cell again"):
        folder.finished({done.cell: done.inputs})


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a" / "results.json"
    write_atomically(path, "old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StoreError, match=r"results\.json can't be written: No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_work_that_was_left_is_not_taken_for_this_cells(tmp_path):
    folder, cell = Folder(tmp_path), Cell("tiny", "toy", "mtl", 1)
    (folder.begin_work(cell) / "half").write_text("")
    assert list(folder.begin_work(cell).iterdir()) == []
    folder.remove_work(cell)
    assert not folder.work(cell).exists()


def test_numbers_of_rounds_are_numbers_again():
    text = result("mtl", 1, 0.7).to_json()
    assert set(json.loads(text)["tasks"]["sst2"]["by_round"]) == {"0", "1", "2"}
    assert set(CellResult.from_json(text).tasks["sst2"].by_round) == {0, 1, 2}
