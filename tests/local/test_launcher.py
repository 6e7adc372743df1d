"""`fedmtl-local`: a whole federation from one command."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

CONFIG = """
model: {server_model: "builtin:toy"}
training: {num_rounds: 2, local_epochs: 1, max_length: 48}
rounds: {quorum_timeout_s: 2, rejoin_grace_s: 1}
tasks:
  sst2: {min_clients: 2, train_samples: 100, val_samples: 50, data: {builtin: sst2}}
  stsb: {train_samples: 100, val_samples: 50, data: {builtin: stsb}}
clients:
  - {client_id: a, task: sst2, shard: 1/2}
  - {client_id: b, task: sst2, shard: 2/2}
  - {client_id: c, task: stsb}
"""


def command(tmp_path: Path, text: str = CONFIG, *options: str) -> list[str]:
    (tmp_path / "c.yaml").write_text(text)
    run_dir = str(tmp_path / "run")
    return [sys.executable, "-m", "fedmtl_local", "--config", str(tmp_path / "c.yaml"), "--run-dir", run_dir, *options]


def test_a_run_ends_with_a_table_and_everything_in_its_folder(tmp_path):
    result = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for fact in ("Round 1/2", "Round 2/2", "Final evaluation", "before round 1", "after the last", "best round"):
        assert fact in result.stdout
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "checkpoints", "metrics.jsonl", "rounds.jsonl", "metrics.png", "results.json"} <= written
    assert {path.stem for path in (tmp_path / "run" / "logs").iterdir()} == {"server", "a", "b", "c"}
    first = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[0])
    assert {part["client_id"]: part["num_examples"] for part in first["components"][0]["contributions"]} == {
        "a": 100,
        "b": 100,
        "c": 100,
    }


def test_a_client_that_fails_at_the_start_ends_the_run_with_its_reason(tmp_path):
    text = CONFIG.replace("data: {builtin: stsb}", "data: {train: no.tsv, validation: no.tsv}")
    result = subprocess.run(command(tmp_path, text), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "c ended with exit code 2" in result.stderr
    assert "tasks.stsb.data.train: there is no file 'no.tsv'" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_stops_every_process(tmp_path):
    with subprocess.Popen(
        command(tmp_path, CONFIG, "--set", "training.num_rounds=500"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as local:
        rounds = tmp_path / "run" / "rounds.jsonl"
        give_up = time.monotonic() + 90
        while not rounds.exists():
            assert local.poll() is None, local.stderr.read() if local.stderr else ""
            assert time.monotonic() < give_up
            with contextlib.suppress(subprocess.TimeoutExpired):
                local.wait(0.1)
        local.send_signal(signal.SIGINT)
        _, errors = local.communicate(timeout=60)
        assert local.returncode == 130
        assert "Traceback" not in errors
    pid = json.loads((tmp_path / "run" / "server.json").read_text())["pid"]
    assert not Path(f"/proc/{pid}").exists()
