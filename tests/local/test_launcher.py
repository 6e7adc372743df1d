"""`fedmtl-local`: a whole federation from one command."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fedmtl_core.config import Config
from fedmtl_core.errors import FedMTLError
from fedmtl_local.launcher import LocalRun
from fedmtl_local.processes import Child, start_module
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE

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


@pytest.mark.long
def test_a_run_ends_with_a_table_and_everything_in_its_folder(tmp_path):
    result = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for fact in ("Round 1/2", "Round 2/2", "Final evaluation", "before round 1", "after the last", "best round"):
        assert fact in result.stdout
    written = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"run.json", "config.yaml", "checkpoints", "history.sqlite", "metrics.png", "results.json"}
    assert expected <= written
    assert "staging" not in written
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert {path.stem for path in (tmp_path / "run" / "logs").iterdir()} == {
        "server",
        "client-a",
        "client-b",
        "client-c",
    }
    first = _reports(tmp_path / "run")[0]
    assert {part["client_id"]: part["num_examples"] for part in first["components"][0]["contributions"]} == {
        "a": 100,
        "b": 100,
        "c": 100,
    }


@pytest.mark.long
def test_a_client_that_fails_at_the_start_ends_the_run_with_its_reason(tmp_path):
    text = CONFIG.replace("data: {builtin: stsb}", "data: {train: no.tsv, validation: no.tsv}")
    result = subprocess.run(command(tmp_path, text), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "client-c ended with exit code 2" in result.stderr
    assert "tasks.stsb.data.train: there is no file 'no.tsv'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.long
def test_ctrl_c_stops_every_process(tmp_path):
    with subprocess.Popen(
        command(tmp_path, CONFIG, "--set", "training.num_rounds=500"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as local:
        _wait(local, lambda: bool(_reports(tmp_path / "run")))
        local.send_signal(signal.SIGINT)
        _, errors = local.communicate(timeout=60)
        assert local.returncode == 130
        assert "Traceback" not in errors
        assert "stopped before the run was over; resume it with: fedmtl-local --config " in errors
    of_this_run = str(tmp_path / "c.yaml").encode()
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if of_this_run in _read(path)]
    assert left == []


@pytest.mark.long
def test_a_run_that_was_stopped_is_taken_up_with_the_command_that_was_told_and_begun_anew_by_no_other(tmp_path):
    options = ("--set", "training.num_rounds=3")
    with subprocess.Popen(
        command(tmp_path, CONFIG, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as local:
        _wait(local, lambda: bool(_reports(tmp_path / "run")))
        local.send_signal(signal.SIGTERM)
        _, errors = local.communicate(timeout=60)
    told = shlex.split(errors.strip().splitlines()[-1].partition("resume it with: ")[2])
    assert told[0] == "fedmtl-local"
    before = (tmp_path / "run" / "logs" / "server.log").read_text()

    taken_up = [sys.executable, "-m", "fedmtl_local", *told[1:]]
    result = subprocess.run(taken_up, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Round 1/3" not in result.stdout
    assert [report["round"] for report in _reports(tmp_path / "run")] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "logs" / "server.log").read_text().startswith(before)

    result = subprocess.run(taken_up, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"the run in {tmp_path / 'run'} is over: see it with `fedmtl-server runs show" in result.stderr


@pytest.mark.long
def test_a_client_that_comes_too_late_for_the_run_is_named_and_no_failure(tmp_path):
    text = CONFIG.replace("{num_rounds: 2,", "{num_rounds: 1,").replace("min_clients: 2", "min_clients: 1")
    text = text.replace("rounds: {", "rounds: {await_clients_s: 30, ")
    with subprocess.Popen(command(tmp_path, text), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as local:
        slow: list[int] = []

        def has_started() -> bool:
            slow[:] = [
                int(path.parent.name)
                for path in Path("/proc").glob("[0-9]*/cmdline")
                if b"client-id\0b\0" in _read(path) and str(tmp_path).encode() in _read(path)
            ]
            return bool(slow)

        _wait(local, has_started)
        os.kill(slow[0], signal.SIGSTOP)
        output, errors = local.communicate(timeout=120)
    assert local.returncode == 0, errors
    assert "round.clients_missing" in output
    assert "client-b never joined: the run was over" in output
    assert "after the last" in output
    assert "exit code" not in errors


def test_a_used_folder_is_refused_before_anything_in_it_is_touched(tmp_path):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "server.log").write_text("precious")
    (tmp_path / "run" / "server.json").write_text('{"address": "127.0.0.1:1"}')
    result = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    expected = (
        "has files of another run (config.yaml, server.json or logs), but no run to resume; choose another folder"
    )
    assert expected in result.stderr
    assert (tmp_path / "run" / "logs" / "server.log").read_text() == "precious"


@pytest.mark.long
def test_a_client_that_dies_late_is_named_after_the_table_of_the_run_that_got_over_it(tmp_path):
    text = CONFIG.replace("{num_rounds: 2,", "{num_rounds: 4,").replace("min_clients: 2", "min_clients: 1")
    with subprocess.Popen(command(tmp_path, text), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as local:
        log = tmp_path / "run" / "logs" / "client-b.log"
        _wait(local, lambda: log.exists() and "update.sent" in log.read_text())
        (victim,) = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"client-id\0b\0" in _read(path)]
        os.kill(int(victim.parent.name), signal.SIGKILL)
        output, errors = local.communicate(timeout=120)
    assert local.returncode == 1
    assert "after the last" in output
    assert "client-b ended with exit code -9" in errors


@pytest.mark.long
def test_a_run_that_is_to_be_complete_is_over_with_the_first_client_that_dies(tmp_path):
    text = CONFIG.replace("{num_rounds: 2,", "{num_rounds: 1000,").replace("min_clients: 2", "min_clients: 1")
    (tmp_path / "c.yaml").write_text(text)
    clients: dict[str, Child] = {}

    def start(module, arguments, environment):
        child = start_module(module, arguments, environment)
        if "--client-id" in arguments:
            clients[arguments[arguments.index("--client-id") + 1]] = child
        return child

    def kill_one(done):
        if done == 1:
            clients["b"].kill()

    config = Config.model_validate(yaml.safe_load(text))
    quiet = Console(quiet=True)
    run = LocalRun(config, tmp_path / "c.yaml", [], tmp_path / "run", console=quiet, on_round=kill_one, start=start)
    with pytest.raises(FedMTLError, match="client-b ended with exit code -9"):
        run.complete()
    assert [child.poll() is None for child in clients.values()] == [False] * 3
    assert len(_reports(tmp_path / "run")) < 1000


@pytest.mark.long
def test_the_first_round_is_of_all_the_clients_however_slowly_they_start_and_two_runs_are_the_same(tmp_path):
    """Two clients of one task, of which a quorum is one, and an auxiliary task's."""
    text = """
model: {server_model: "builtin:toy"}
training: {num_rounds: 2, local_epochs: 1, learning_rate: 2e-3, max_length: 48}
client: {num_threads: 1}
tasks:
  sst2: {train_samples: 100, val_samples: 50, data: {builtin: sst2}}
  qqp: {auxiliary: true, train_samples: 50, val_samples: 50, data: {builtin: qqp}}
clients: [{client_id: t, task: qqp}, {client_id: a, task: sst2, shard: 1/2}, {client_id: b, task: sst2, shard: 2/2}]
"""
    (tmp_path / "c.yaml").write_text(text)

    def outcome(run_dir: Path, slow: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
        def start(module, arguments, environment):
            if slow in arguments:  # the server and the others have had all the time they want
                log = run_dir / "logs" / "server.log"
                _wait(others[0], lambda: log.read_text().count("client.joined") == len(others) - 1)
            others.append(start_module(module, arguments, environment))
            return others[-1]

        others: list[Child] = []
        config = Config.model_validate(yaml.safe_load(text))
        run = LocalRun(config, tmp_path / "c.yaml", [], run_dir, console=Console(quiet=True), start=start)
        results = run.run()
        with contextlib.closing(History.open(run_dir / HISTORY_FILE, create=False)) as history:
            rounds = history.rounds(json.loads((run_dir / "run.json").read_text())["run_id"])
        return results, [dict(one.cohort) for one in rounds]

    first, second = (outcome(tmp_path / slow, slow) for slow in ("b", "nobody"))
    assert first[1][1] == {"a": "sst2", "b": "sst2", "t": "qqp"}
    assert first == second


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        ("round_robin", "1 more stsb client (x has it too, but has chosen sst2)"),
        ("server", "1 more stsb client (x has it too, but is needed for sst2)"),
    ],
)
def test_a_quorum_that_the_configurations_clients_cannot_fill_is_told_at_once_and_why(selection, told, tmp_path):
    others = "{client_id: y, task: sst2}" if selection == "round_robin" else "{client_id: y, task: qqp}"
    text = f"""
model: {{server_model: "builtin:toy"}}
client: {{selection: {selection}}}
tasks: {{sst2: {{data: {{builtin: sst2}}}}, stsb: {{data: {{builtin: stsb}}}}, qqp: {{data: {{builtin: qqp}}}}}}
clients: [{{client_id: x, tasks: [sst2, stsb]}}, {others}]
"""
    text = text.replace(", qqp: {", ", qqp: {min_clients: 0, ") if selection == "round_robin" else text
    with subprocess.Popen(command(tmp_path, text), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as local:
        assert local.stdout is not None
        line = next(line for line in local.stdout if "the first round" in line)
        local.send_signal(signal.SIGTERM)
        local.communicate(timeout=60)
    assert line == f"the first round waits for clients that are not in `clients`: {told}\n"


def _reports(run_dir: Path) -> list[Mapping[str, Any]]:
    """Of the rounds that have ended, in their order; none before the run has begun."""
    try:
        run_id = json.loads((run_dir / "run.json").read_text())["run_id"]
    except FileNotFoundError:
        return []
    with contextlib.closing(History.open(run_dir / HISTORY_FILE, create=False)) as history:
        return [one.report for one in history.rounds(run_id) if one.report is not None]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended since
        return b""


def _wait(process: Child, condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < give_up
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
