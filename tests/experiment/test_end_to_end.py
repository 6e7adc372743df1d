"""A whole experiment, with real servers and clients."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiment.support import TOY, write

pytestmark = pytest.mark.e2e

# A single client's federation is the same with and without others of its task: one setting of one task shows it.
SETTINGS = {
    "pair": {
        "validation_rows": 60,
        "report_rows": 100,
        "held_back_rows": 50,
        "methods": ["central", "mtl", "standard"],
        "tasks": {"sst2": {"train_rows": 64, "clients": 1}, "stsb": {"train_rows": 64, "clients": 1}},
    },
    "alone": {
        "validation_rows": 60,
        "report_rows": 100,
        "methods": ["standard", "local"],
        "tasks": {"sst2": {"train_rows": 64, "clients": 1}},
    },
}


def command(tmp_path: Path) -> list[str]:
    common = {"training": {**TOY["common"]["training"], "num_rounds": 1}}
    path = write(tmp_path, seeds=[1], settings=SETTINGS, common=common)
    return [sys.executable, "-m", "fedmtl_experiment", "--config", str(path), "--results", str(tmp_path / "r")]


@pytest.mark.long
def test_all_four_methods_run_go_on_after_ctrl_c_and_begin_alike(tmp_path):
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        first_cell, server = tmp_path / "r/cells/pair/toy/central-1.json", tmp_path / "r/work/pair+toy+mtl+1/run-all"
        _wait(first, server / "server.json")
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=120)
    assert first.returncode == 130, errors
    assert "stopped with 4 of 5 cells to do; repeat the command to continue" in errors
    computed = first_cell.read_text()
    of_this_run = str(tmp_path / "r").encode()
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if of_this_run in _read(path)] == []

    # Two processes go on, and a third command with the same folder beside them.
    with subprocess.Popen(
        [*command(tmp_path), "--processors", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as beside:
        result = subprocess.run(
            [*command(tmp_path), "--jobs", "2"], capture_output=True, text=True, timeout=600, check=False
        )
        output, errors = beside.communicate(timeout=600)
    assert (result.returncode, beside.returncode) == (0, 0), result.stdout + result.stderr + output + errors
    assert "5 of 5 cells are finished." in result.stdout
    assert "5 of 5 cells are finished." in output
    computed_lines = [line for line in (result.stdout + output).splitlines() if "  (" in line and "/toy/" in line]
    assert len(computed_lines) == 4  # each of the others once
    assert "pair/toy/central" not in result.stdout  # it was there already
    assert first_cell.read_text() == computed
    assert list((tmp_path / "r" / "work").iterdir()) == []

    cells = {
        name: json.loads((tmp_path / f"r/cells/{name}-1.json").read_text())
        for name in (
            *(f"pair/toy/{method}" for method in ("central", "mtl", "standard")),
            "alone/toy/standard",
            "alone/toy/local",
        )
    }
    for name, one in cells.items():
        held_back = [task["held_back"] for task in one["tasks"].values()]
        if name.startswith("pair/"):
            assert [set(metrics) - {"loss"} for metrics in held_back] == [{"accuracy"}, {"pearson", "spearman"}]
            assert all(
                metrics["loss"] != task["report"]["loss"]
                for metrics, task in zip(held_back, one["tasks"].values(), strict=True)
            )
        else:
            assert held_back == [None]
        wall = one["wall"]
        parts = [wall[part] for part in ("start_up", "training", "evaluation", "exchange", "reporting")]
        assert sum(parts) == pytest.approx(wall["total"])
        assert all(part > 0 for part in (wall["training"], wall["evaluation"], wall["reporting"]))
        sst2 = one["tasks"]["sst2"]
        assert sst2["by_round"]["0"] == cells["pair/toy/mtl"]["tasks"]["sst2"]["by_round"]["0"]
        assert sst2["by_round"].keys() == {"0", "1"}
        assert (sst2["steps"], sst2["report_rows"]) == (2, 100)
    alone, standard = cells["alone/toy/local"], cells["alone/toy/standard"]
    assert alone["tasks"]["sst2"]["report"] == standard["tasks"]["sst2"]["report"]
    assert alone["bytes_up"] is None
    pair = cells["pair/toy/standard"]
    assert pair["tasks"]["sst2"]["report"] == standard["tasks"]["sst2"]["report"]
    assert pair["tasks"]["stsb"]["steps"] == 2
    encoder = standard["encoder_parameters"]
    assert pair["held_parameters"] == 2 * encoder + 65 * 2 + 65
    assert standard["held_parameters"] == encoder + 65 * 2
    assert cells["pair/toy/mtl"]["held_parameters"] == encoder + 65 * 2 + 65
    # Two clients' exact updates of encoder and head in the one training round, and no tensors in the evaluation.
    assert cells["pair/toy/mtl"]["bytes_up"] == 4 * (2 * encoder + 65 * 2 + 65)


@pytest.mark.long
def test_adapters_count_and_send_only_their_factors_and_heads(tmp_path):
    """Of two layers of width 64 and 256, at rank 3: A has 3 (5 · 64 + 256) elements in a layer, B as many."""
    factor = 2 * 3 * (5 * 64 + 256)
    adapters = {"model.adapters": {"rank": 3}}
    methods = {
        "mtl": {"base": "mtl"},
        "mtl_lora_b_task": {"base": "mtl", "set": {**adapters, "sharing.adapters": {"b": "task"}}},
        "standard_lora": {"base": "standard", "set": adapters},
    }
    settings = {
        "pair": {key: value for key, value in SETTINGS["pair"].items() if key not in ("methods", "held_back_rows")}
    }
    common = {"training": {**TOY["common"]["training"], "num_rounds": 1}}
    path = write(tmp_path, seeds=[1], settings=settings, common=common, methods=methods)
    command = [sys.executable, "-m", "fedmtl_experiment", "--config", str(path), "--results", str(tmp_path / "r")]
    subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    whole, by_task, standard = (
        json.loads((tmp_path / f"r/cells/pair/toy/{method}-1.json").read_text()) for method in methods
    )
    encoder, heads = whole["encoder_parameters"], 65 * 2 + 65
    assert by_task["encoder_parameters"] == standard["encoder_parameters"] == encoder + 2 * factor
    assert by_task["held_parameters"] == encoder + factor + 2 * factor + heads  # the encoder and A once, B by task
    assert standard["held_parameters"] == 2 * (encoder + 2 * factor) + heads
    # One round of training, and two downloads: before it, and for the evaluation.
    sent = 4 * (2 * factor + heads)
    for one in (by_task, standard):
        assert one["bytes_up"] == sent
        assert 0 <= one["bytes_down"] - 2 * sent < 200  # the headers of four chunks
    assert by_task["tasks"]["sst2"]["report"] == standard["tasks"]["sst2"]["report"]  # nothing is shared by both


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended since
        return b""


def _wait(process: subprocess.Popen[str], path: Path) -> None:
    give_up = time.monotonic() + 400
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < give_up
        time.sleep(0.1)
