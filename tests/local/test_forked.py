"""A forked process is what `python -m` would have made."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fedmtl_local.forked import ForkedProcess
from fedmtl_local.processes import LoggedProcess, Program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process is comes from /proc")

TOLD = "tests.local.told"

CALLER = """
import signal
from fedmtl_local.forked import ForkedProcess

if __name__ == "__main__":
    arrived = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    print("starting", flush=True)
    process = ForkedProcess("tests.local.told", ["--wait"], {})
    assert process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    print(f"{'interrupted' if arrived else 'not interrupted'}, ended with {process.wait(30)}")
"""


def test_it_has_its_command_line_environment_threads_and_session_and_ends_with_its_exit_code():
    process = ForkedProcess(TOLD, ["--name", "a b"], {"TOLD": "yes", "OMP_NUM_THREADS": "1"})
    with process.stderr:
        told = json.loads(process.stderr.read())
    assert process.wait(30) == process.poll() == 3
    assert told == {
        "arguments": ["--name", "a b"],
        "variable": "yes",
        "threads": 1,
        "leads_its_session": True,
        "process": "MainProcess",
        "is_main": True,
        "command": f"{sys.executable} -m {TOLD} --name 'a b'",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_that_runs_on_is_waited_for_no_longer_than_that_and_ends_by_a_signal(number):
    process = ForkedProcess(TOLD, ["--wait"], {})
    with process.stderr:
        process.stderr.readline()
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        process.send_signal(number)
        assert process.wait(30) == -number
        process.kill()  # it has ended: nothing happens


KILLED = """
import time
from fedmtl_local.forked import ForkedProcess

if __name__ == "__main__":
    process = ForkedProcess("tests.local.told", ["--wait"], {})
    assert process.stderr.readline()
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_it_ends_with_the_process_that_started_it_even_if_that_is_killed(tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(KILLED)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    ) as caller:
        pid = int(caller.stdout.readline())
        assert is_alive(pid)
        caller.kill()
    give_up = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def is_alive(pid):
    """Whether a process exists and isn't a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c_while_the_libraries_are_imported_is_for_the_caller_alone(tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    ) as caller:
        assert caller.stdout.readline() == "starting\n"
        time.sleep(1)  # they take several
        os.killpg(caller.pid, signal.SIGINT)
        output, errors = caller.communicate(timeout=60)
    assert (output, errors) == ("interrupted, ended with -15\n", "")


def test_what_it_writes_is_in_its_log_whole(tmp_path):
    log = tmp_path / "log"
    process = LoggedProcess(
        "told", Program(TOLD), log, lambda name, line: None, milestone="is_main", start=ForkedProcess
    )
    assert process.wait(30) == 3
    assert process.has_reached
    assert log.read_text().splitlines() == process.tail
    assert json.loads(log.read_text())["is_main"]
