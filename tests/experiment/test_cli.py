"""The command line, without computing anything."""

import json
import signal

import pytest
from typer.testing import CliRunner

from fedmtl_core.errors import ConfigError, DataError, ModelUnavailableError, StoreError
from fedmtl_experiment.cells import Cell, inputs
from fedmtl_experiment.cli import app
from fedmtl_experiment.results import Folder
from tests.experiment.support import TOY, experiment, outcome, result, write


@pytest.fixture(autouse=True)
def _handlers():
    """The command line takes signals; they are given back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def call(path, *options):
    found = CliRunner().invoke(app, ["--config", str(path), *options], catch_exceptions=True)
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def save(tmp_path, method, seed, value):
    cell = Cell("tiny", "toy", method, seed)
    tasks = {"sst2": outcome(value), "stsb": outcome(value, metric="pearson")}
    Folder(tmp_path / "r").save(result(method, seed, value, inputs=inputs(experiment(tmp_path), cell), tasks=tasks))


def test_list_says_what_is_finished_and_what_is_to_do(tmp_path):
    save(tmp_path, "mtl", 1, 0.7)
    output = call(write(tmp_path), "--results", str(tmp_path / "r"), "--list", "--only", "*/1").output
    assert output.splitlines() == [
        "to do     tiny/toy/local/1",
        "to do     tiny/toy/standard/1",
        "finished  tiny/toy/mtl/1",
        "to do     tiny/toy/central/1",
    ]


def test_report_only_writes_tables_and_plots_of_what_is_finished(tmp_path):
    save(tmp_path, "mtl", 1, 0.7)
    save(tmp_path, "standard", 1, 0.6)
    output = call(write(tmp_path), "--results", str(tmp_path / "r"), "--report-only").output
    assert "2 of 8 cells are finished." in output
    assert "| whole encoder shared (`mtl`) | +0.100 | +0.100 | +0.100 |" in output
    names = {path.name for path in (tmp_path / "r").iterdir() if path.is_file()}
    assert names == {"results.md", "results.json", "differences.png", "tiny-toy-curves.png", "tiny-toy-bars.png"}
    assert (tmp_path / "r" / "tiny-toy-bars.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "r" / "results.json").read_text())["cells_finished"] == 2


def test_without_results_there_is_nothing_to_report(tmp_path):
    with pytest.raises(StoreError, match=r"no cell is finished in .*r, so there is nothing to report"):
        call(write(tmp_path), "--results", str(tmp_path / "r"), "--report-only")


def test_results_of_another_configuration_are_not_mixed_with_these(tmp_path):
    save(tmp_path, "mtl", 1, 0.7)
    changed = write(tmp_path, common={"training": {**TOY["common"]["training"], "num_rounds": 9}})
    with pytest.raises(ConfigError, match=r"set\.training\.num_rounds: the file has 2, the configuration 9"):
        call(changed, "--results", str(tmp_path / "r"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "r").write_text("not a folder")
    with pytest.raises(StoreError, match=r"/r can't be written: "):
        call(write(tmp_path), "--results", str(tmp_path / "r"))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"tasks": {**TOY["tasks"], "stsb": {"data": {"train": "no.tsv", "validation": "no.tsv"}}}},
            DataError,
            r"tasks\.stsb\.data\.train: there is no file 'no\.tsv'",
        ),
        (
            {"settings": {"tiny": {"tasks": {"sst2": {"train_rows": 100_000}}}}},
            ConfigError,
            "sst2: 100000 training and 400 validation rows are requested",
        ),
        ({"encoders": {"toy": {"model.server_model": "/no/model"}}}, ModelUnavailableError, "there is no such folder"),
        (
            {"methods": {"mtl": {"base": "mtl", "set": {"training.optimiser": "sgd"}}}},
            ConfigError,
            r"cell tiny/toy/mtl/\d: training\.optimiser: unknown key",
        ),
    ],
)
def test_what_would_fail_in_a_later_cell_is_said_before_the_first(changes, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        call(write(tmp_path, **changes), "--results", str(tmp_path / "r"))
    assert not (tmp_path / "r" / "cells").exists()
