"""The command lines, as people mistype them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

CONFIGS = Path(__file__).parents[2] / "configs"


def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=os.environ | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1"} | environment,
    )


@pytest.mark.parametrize("module", ["fedmtl_server", "fedmtl_client", "fedmtl_local"])
def test_help_names_every_option_and_every_configuration_key_with_its_default(module):
    shown = run(module, "--help")
    assert shown.returncode == 0
    for fact in ("--config", "--set", "learning_rate = 2e-05", "rounds: deadline_s = 600.0", "clients[]: "):
        assert fact in shown.stdout


DEMO = ("--config", str(CONFIGS / "demo.yaml"))
WRONG = {
    "no configuration": ("fedmtl_server", (), "error: --config: needed, a YAML file; or --resume RUN_DIR"),
    "a missing file": ("fedmtl_server", ("--config", "nope.yaml"), "nope.yaml: can't read the configuration: No such"),
    "an unknown key": ("fedmtl_server", (*DEMO, "--set", "training.epochs=3"), "training.epochs: unknown key"),
    "a wrong value": (
        "fedmtl_server",
        (*DEMO, "--set", "training.max_length=none"),
        "training.max_length: input should be a valid integer, unable to parse string as an integer (got 'none')",
    ),
    "no tasks": ("fedmtl_server", ("--config", os.devnull), "tasks: name at least one task"),
    "a wrong flag": ("fedmtl_server", (*DEMO, "--prot", "1"), "No such option"),
    "a task of no name": ("fedmtl_client", ("--client-id", "a"), "error: task: needed: the task that this client has"),
    "a task given twice": (
        "fedmtl_client",
        ("--client-id", "a", "--task", "sst2", "--task", "sst2"),
        "error: task: expected each once; 'sst2' is there twice",
    ),
    "a selection of no name": (
        "fedmtl_server",
        (*DEMO, "--set", "rounds.task_selection=los"),
        "rounds.task_selection: did you mean 'loss'? expected round_robin, loss, quorum, or module:Name",
    ),
    "an unknown task": ("fedmtl_client", ("--client-id", "a", "--task", "sst3"), "expected one of sst2, qqp, stsb"),
    "a task outside the file": ("fedmtl_client", ("--client-id", "a", "--task", "rte", *DEMO), "has the tasks sst2"),
    "a client id with a space": ("fedmtl_client", ("--client-id", "a b", "--task", "sst2"), "expected 1 to 64 letters"),
    "a wrong shard": (
        "fedmtl_client",
        ("--client-id", "a", "--task", "sst2", "--shard", "3/2"),
        "expected K/N with 1 <= K <= N",
    ),
    "a wrong device": (
        "fedmtl_client",
        ("--client-id", "a", "--task", "sst2", "--device", "gpu"),
        "error: --device: expec",
    ),
    "a wrong port": ("fedmtl_server", (*DEMO, "--port", "70000"), "error: --port: input should be less than or equal"),
    "another task than the file's": (
        "fedmtl_client",
        ("--client-id", "qqp_client", "--task", "sst2", *DEMO),
        "`clients` say that 'qqp_client' has the task 'qqp', got 'sst2'",
    ),
    "no data without a hub": ("fedmtl_client", ("--client-id", "a", "--task", "sst2"), "can't be had from the hub"),
    "no model without a hub": (
        "fedmtl_server",
        ("--config", str(CONFIGS / "federated_config.yaml")),
        "or run with --config configs/demo.yaml, which needs no hub",
    ),
    "no clients to start": (
        "fedmtl_local",
        ("--config", str(CONFIGS / "federated_config.yaml")),
        "clients: name those",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_in_words_with_exit_code_2_and_no_traceback(case):
    module, arguments, text = WRONG[case]
    result = run(module, *arguments)
    assert result.returncode == 2, result.stderr
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("fedmtl_server", *DEMO, "--port", port, "--run-dir", str(tmp_path / "run"))
    assert result.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in result.stderr
    assert "choose another with --port" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    result = run("fedmtl_server", "--resume", str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert f"error: --resume: {tmp_path} holds no run; see `fedmtl-server runs list`" in result.stderr


def test_the_runs_of_a_folder_are_listed_in_words_when_there_are_none(tmp_path):
    result = run("fedmtl_server", "runs", "list", "--runs-dir", str(tmp_path))
    assert (result.returncode, result.stdout) == (0, f"There are no runs in {tmp_path}.\n")


def test_a_client_without_a_server_gives_up_in_words():
    options = ("--client-id", "a", "--task", "sst2", "--server", "127.0.0.1:1", "--set", "client.reconnect_s=1")
    result = run("fedmtl_client", *DEMO, *options)
    assert result.returncode == 1
    assert "server.away" in result.stderr
    assert "error: no server at 127.0.0.1:1 for " in result.stderr
    assert "failed to connect to all addresses" not in result.stderr
    assert "Traceback" not in result.stderr
