"""The command lines, as people mistype them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedmtl_core import config

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


COMMANDS = ["fedmtl_server", "fedmtl_client", "fedmtl_local", "fedmtl_experiment"]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_names_the_options_on_one_page(module):
    shown = run(module, "--help")
    assert shown.returncode == 0
    for fact in ("--config", "--log-level", "--help-config" if module != "fedmtl_experiment" else "--only"):
        assert fact in shown.stdout
    assert "learning_rate" not in shown.stdout
    assert len(shown.stdout.splitlines()) < 60


@pytest.mark.parametrize("module", ["fedmtl_server", "fedmtl_client", "fedmtl_local"])
def test_help_config_names_every_configuration_key_with_its_default_meaning_and_readers(module):
    shown = run(module, "--help-config")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for setting in config.reference():
        line = lines.index(f"{setting.key} = {setting.default}" if setting.default else setting.key)
        assert setting.description.startswith(lines[line + 1].strip())
        readers = lines.index(f"    Read by: {', '.join(setting.read_by)}.", line)
        assert " ".join(text.strip() for text in lines[line + 1 : readers]) == setting.description


HELP = """
import runpy, sys
sys.argv[1:] = {arguments}
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, sorted({{"torch", "transformers", "datasets", "scipy", "sklearn"}} & {{*sys.modules}}))
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        *((module, ["--help"]) for module in COMMANDS),
        *((module, ["--help-config"]) for module in COMMANDS[:3]),
        *(("fedmtl_server", [name, "--help"]) for name in ("export", "doctor", "runs", "clients", "certs")),
        *(("fedmtl_client", [name, "--help"]) for name in ("doctor", "init")),
        ("fedmtl_local", ["new", "--help"]),
    ],
)
def test_help_waits_for_no_library_that_takes_seconds_to_import(module, arguments):
    script = HELP.format(module=module, arguments=arguments)
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=90, check=True)
    assert shown.stdout.splitlines()[-1] == "0 []"


FIRST = """
import runpy, sys
class Torch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "datasets"):
            sys.exit(f"now it imports {{name}}")
sys.meta_path.insert(0, Torch())
sys.argv[1:] = {arguments}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("fedmtl_server", ["--config", "configs/demo.yaml"], "server.starting config=configs/demo.yaml"),
        (
            "fedmtl_client",
            ["--config", "configs/demo.yaml", "--client-id", "sst2_client"],
            "client.starting client_id=sst2_client server=127.0.0.1:50051 config=configs/demo.yaml",
        ),
        ("fedmtl_local", ["--config", "configs/demo.yaml"], "starting configs/demo.yaml: a server and 3 clients"),
        ("fedmtl_experiment", ["--config", "configs/experiment-small.yaml"], "small.yaml: 0 of 9 cells are finished"),
        ("fedmtl_server", ["doctor", "--config", "configs/demo.yaml"], "checking what a server needs"),
        ("fedmtl_client", ["doctor", "--client-id", "a", "--task", "sst2"], "checking what a client needs"),
        ("fedmtl_client", ["init", "no-such-file.yaml"], "asking 127.0.0.1:50051 for its tasks"),
        ("fedmtl_local", ["new", "no-such-folder", "--task", "t=ROWS"], "reading rows and encoder"),
    ],
)
def test_something_is_said_before_what_takes_seconds_to_import(module, arguments, said, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nsome words,a\nother words,b\n")
    arguments = [one.replace("ROWS", str(tmp_path / "rows.csv")) for one in arguments]
    if module == "fedmtl_experiment":
        arguments = [*arguments, "--results", str(tmp_path)]
    shown = subprocess.run(
        [sys.executable, "-c", FIRST.format(module=module, arguments=arguments)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=CONFIGS.parent,
    )
    assert "now it imports" in shown.stderr
    assert said in shown.stdout + shown.stderr.partition("now it imports")[0]


def test_log_level_leaves_out_what_is_below_it():
    options = ("--client-id", "a", "--task", "sst2", "--server", "127.0.0.1:1", "--set", "client.reconnect_s=0")
    shown = {level: run("fedmtl_client", *DEMO, *options, "--log-level", level).stderr for level in ("info", "error")}
    assert "client.starting" in shown["info"]
    assert "[info" not in shown["error"]
    assert "error: no server at 127.0.0.1:1" in shown["error"]
    assert "Invalid value for '--log-level'" in run("fedmtl_local", *DEMO, "--log-level", "all").stderr


DEMO = ("--config", str(CONFIGS / "demo.yaml"))
WRONG = {
    "no configuration": ("fedmtl_server", (), "error: --config: required, a YAML file; or --resume RUN_DIR"),
    "a missing file": ("fedmtl_server", ("--config", "nope.yaml"), "nope.yaml: can't read the configuration: No such"),
    "an unknown key": ("fedmtl_server", (*DEMO, "--set", "training.epochs=3"), "training.epochs: unknown key"),
    "a wrong value": (
        "fedmtl_server",
        (*DEMO, "--set", "training.max_length=none"),
        "training.max_length: input should be a valid integer, unable to parse string as an integer (got 'none')",
    ),
    "no tasks": ("fedmtl_server", ("--config", os.devnull), "tasks: expected at least one task, got none"),
    "a wrong flag": ("fedmtl_server", (*DEMO, "--prot", "1"), "No such option"),
    "a task of no name": (
        "fedmtl_client",
        ("--client-id", "a"),
        "error: task: required: name the task or tasks that this client has",
    ),
    "a task given twice": (
        "fedmtl_client",
        ("--client-id", "a", "--task", "sst2", "--task", "sst2"),
        "error: task: expected each task once, got 'sst2' several times",
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
        "'qqp_client' has the task 'qqp', got 'sst2'",
    ),
    "no data without a hub": ("fedmtl_client", ("--client-id", "a", "--task", "sst2"), "can't be loaded from the hub"),
    "no model without a hub": (
        "fedmtl_server",
        ("--config", str(CONFIGS / "federated_config.yaml")),
        "or run with --config configs/demo.yaml, which needs no hub",
    ),
    "a folder that isn't empty": ("fedmtl_local", ("new", str(CONFIGS)), "configs exists and isn't empty; name a new"),
    "no task of a new federation": ("fedmtl_local", ("new", "no-such-folder"), "error: --task: needed, once for each"),
    "a file to overwrite": (
        "fedmtl_client",
        ("init", str(CONFIGS / "demo.yaml")),
        "demo.yaml exists; overwrite it with --force, or name another file",
    ),
    "no clients to start": (
        "fedmtl_local",
        ("--config", str(CONFIGS / "federated_config.yaml")),
        "clients: expected at least one client to start, got none",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_in_words_with_exit_code_2_and_no_traceback(case):
    module, arguments, text = WRONG[case]
    result = run(module, *arguments)
    assert result.returncode == 2, result.stderr
    assert text in result.stderr
    assert "Traceback" not in result.stderr


LONG = "x" * 300
NO_PATH = {
    "configuration": ("fedmtl_server", ("--config", LONG), ""),
    "configuration of the launcher": ("fedmtl_local", ("--config", LONG), ""),
    "configuration of an experiment": ("fedmtl_experiment", ("--config", LONG), ""),
    "configuration of a client": ("fedmtl_client", ("--client-id", "a", "--task", "sst2", "--config", LONG), ""),
    "run to resume": ("fedmtl_server", ("--resume", LONG), "--resume: "),
    "run's folder": ("fedmtl_local", (*DEMO, "--run-dir", LONG), "--run-dir: "),
    "folder of runs": ("fedmtl_local", (*DEMO, "--set", f"server.runs_dir={LONG}"), "server.runs_dir: "),
    "results": (
        "fedmtl_experiment",
        ("--config", str(CONFIGS / "experiment-small.yaml"), f"--results={LONG}"),
        "--results: ",
    ),
    "token": (
        "fedmtl_client",
        ("--client-id", "a", *DEMO, "--task", "sst2", "--token-file", LONG),
        "client.token_file",
    ),
    "certificate": (
        "fedmtl_client",
        ("--client-id", "a", *DEMO, "--task", "sst2", "--tls-ca", LONG),
        "client.tls_ca: ",
    ),
    "runs to list": ("fedmtl_server", ("runs", "list", "--runs-dir", LONG), "--runs-dir: "),
    "run to show": ("fedmtl_server", ("runs", "show", LONG), ""),
    "run to export": ("fedmtl_server", ("export", "--task", "sst2", "out", "--run-dir", LONG), "--run-dir: "),
    "clients": ("fedmtl_server", ("clients", "list", "--runs-dir", LONG), "--runs-dir: "),
    "certificates": ("fedmtl_server", ("certs", "init", LONG), ""),
}


@pytest.mark.parametrize("case", NO_PATH)
def test_a_path_that_is_too_long_is_told_in_one_line_with_its_option(case):
    module, arguments, option = NO_PATH[case]
    result = run(module, *arguments)
    assert result.returncode in (1, 2)
    (line,) = (line for line in result.stderr.splitlines() if "[info" not in line)
    assert line.startswith(f"error: {option}")
    assert "x" * 140 in line
    assert line.endswith("File name too long")
    assert len(line) < 450


def test_a_folder_below_a_file_is_told_with_the_option_or_the_key(tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    for options, setting in (
        (("--run-dir", str(below)), "--run-dir"),
        (("--set", f"server.runs_dir={below}"), "server"),
    ):
        result = run("fedmtl_local", *DEMO, *options)
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: {setting}")
        assert f"{below}" in result.stderr
        assert result.stderr.endswith("Not a directory\n")


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
    assert f"error: --resume: {tmp_path} contains no run; list runs with `fedmtl-server runs list`" in result.stderr


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


CTRL_C = """
import os, runpy, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv[1:] = ["--help"]
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", COMMANDS)
def test_ctrl_c_while_a_command_is_still_imported_ends_it_without_a_traceback(module):
    ended = subprocess.run(
        [sys.executable, "-c", CTRL_C.format(module=module)], capture_output=True, text=True, timeout=90, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")
