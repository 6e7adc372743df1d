"""Finished cells, and how an experiment goes on with them."""

import json
import subprocess
import sys

import pytest

from fedmtl_core.errors import ConfigError, StoreError
from fedmtl_experiment.cells import Cell
from fedmtl_experiment.results import CellResult, Folder, write_atomically
from fedmtl_experiment.timing import WallTime
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


CLAIMER = """
import sys, time
from pathlib import Path
from fedmtl_experiment.cells import Cell
from fedmtl_experiment.results import Folder

with Folder(Path(sys.argv[1])).claim(Cell("tiny", "toy", "mtl", 1)) as is_mine:
    print(is_mine, flush=True)
    time.sleep(600)
"""


def test_a_cell_is_locked_for_other_processes_until_its_process_ends_even_by_sigkill(tmp_path):
    folder, cell = Folder(tmp_path), Cell("tiny", "toy", "mtl", 1)
    with subprocess.Popen([sys.executable, "-c", CLAIMER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with folder.claim(cell) as is_mine:
            assert not is_mine
        with folder.claim(Cell("tiny", "toy", "mtl", 2)) as is_mine:
            assert is_mine
        other.kill()
    with folder.claim(cell) as is_mine:
        assert is_mine
        with folder.claim(cell) as again:
            assert not again


def test_no_two_cells_have_the_same_folder_of_work(tmp_path):
    cells = [Cell("a-b", "c", "d", 1), Cell("a", "b-c", "d", 1), Cell("a", "b", "c-d", 1)]
    assert len({Folder(tmp_path).work(cell) for cell in cells}) == 3


def test_a_cell_of_an_older_version_has_no_parts_of_its_time_and_no_held_back_metrics():
    values = json.loads(result("mtl", 1, 0.7).to_json())
    del values["wall"], values["tasks"]["sst2"]["held_back"]
    assert CellResult.from_json(json.dumps(values)) == result("mtl", 1, 0.7)
    times = WallTime(10.0, 1.0, 4.0, 2.0, 2.5, 0.5)
    written = result("mtl", 1, 0.7, wall=times, tasks={"sst2": outcome(0.7, held_back={"accuracy": 0.6})})
    assert CellResult.from_json(written.to_json()) == written


def test_numbers_of_rounds_are_numbers_again():
    text = result("mtl", 1, 0.7).to_json()
    assert set(json.loads(text)["tasks"]["sst2"]["by_round"]) == {"0", "1", "2"}
    assert set(CellResult.from_json(text).tasks["sst2"].by_round) == {0, 1, 2}
