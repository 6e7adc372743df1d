"""Several processes with one folder of results: each cell is computed by one of them, and none is lost."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from fedmtl_core.errors import FedMTLError
from fedmtl_experiment import job_processes
from fedmtl_experiment.cells import Cell
from fedmtl_experiment.results import Folder

CELLS = [Cell("tiny", "toy", "mtl", seed) for seed in range(1, 7)]

PROGRAM = """
import sys, time
from pathlib import Path
from rich.console import Console
from fedmtl_experiment.jobs import compute_all
from fedmtl_experiment.progress import ConsoleProgress
from fedmtl_experiment.results import Folder
from tests.experiment.support import result
from tests.experiment.test_jobs import CELLS

folder, name = Folder(Path(sys.argv[1])), sys.argv[2]

def compute(cell):
    work = folder.begin_work(cell)
    assert list(work.iterdir()) == []
    (work / "file").write_text(name)
    with (folder.path / "log").open("a") as log:
        log.write(f"{cell.seed} {name}\\n")
    while name == "stuck":
        time.sleep(1)
    time.sleep(0.1)
    assert (work / "file").read_text() == name
    folder.save(result("mtl", cell.seed, 0.7))
    folder.remove_work(cell)

with ConsoleProgress(Console(width=200), 0, len(CELLS)) as progress:
    compute_all(CELLS, folder, compute, progress)
"""


def start(folder, name):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(condition):
    give_up = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def log_of(folder):
    path = folder / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_each_cell_is_computed_once_and_that_of_a_killed_process_by_another(tmp_path):
    with start(tmp_path, "stuck") as stuck:
        until(lambda: log_of(tmp_path))
        others = [start(tmp_path, name) for name in ("a", "b")]
        until(lambda: all(Folder(tmp_path).is_finished(cell) for cell in CELLS[1:]))
        assert [one.poll() for one in others] == [None, None]  # they wait for the cell of the first
        assert not Folder(tmp_path).is_finished(CELLS[0])
        stuck.kill()
        told = [one.communicate(timeout=120) for one in others]
    assert [one.returncode for one in others] == [0, 0], told
    assert all(Folder(tmp_path).is_finished(cell) for cell in CELLS)
    computed = log_of(tmp_path)
    assert computed[0] == ["1", "stuck"]
    assert sorted(seed for seed, _ in computed[1:]) == ["1", "2", "3", "4", "5", "6"]
    assert list((tmp_path / "work").iterdir()) == []
    for output, _ in told:
        assert "waiting for cells that other processes compute: tiny/toy/mtl/1" in output


def test_the_first_failure_of_several_processes_stops_the_others_and_is_the_error(monkeypatch):
    """A process with a bad command line fails; one that runs on is stopped by a signal."""
    commands = iter([["-c", "import time; print('one', flush=True); time.sleep(600)"], ["-c", FAILS]])
    popen, started = subprocess.Popen, []

    def fake(command, **options):
        started.append(popen([sys.executable, *next(commands)], **options))
        return started[-1]

    monkeypatch.setattr(job_processes.subprocess, "Popen", fake)
    said = []
    with pytest.raises(FedMTLError, match=r"^cell a/b/c/1: it failed$"):
        job_processes.run_side_by_side([], 2, said.append)
    assert [one.returncode for one in started] == [-15, 1]
    assert "two" in said


FAILS = "import sys; print('two', flush=True); print('error: cell a/b/c/1: it failed', file=sys.stderr); sys.exit(1)"


def test_processes_of_one_command_share_its_processors_and_write_no_report_themselves(tmp_path, monkeypatch):
    from tests.experiment.support import write
    from tests.experiment.test_cli import call

    given = []
    monkeypatch.setattr("fedmtl_experiment.cli.run_side_by_side", lambda *all_of_it: given.append(all_of_it))
    options = ("--results", str(tmp_path / "r"), "--only", "*/mtl/*", "--only", "*/local/1", "--keep-runs")
    with pytest.raises(FedMTLError, match="no cell is finished"):
        call(write(tmp_path), *options, "--jobs", "4", "--processors", "6")
    ((arguments, number, _),) = given
    assert number == 3  # as many as there are cells
    assert arguments == [
        *("--job", "--config", str(tmp_path / "experiment.yaml"), "--results", str(tmp_path / "r")),
        *("--processors", "1", "--only", "*/mtl/*", "--only", "*/local/1", "--log-level", "warning", "--keep-runs"),
    ]
