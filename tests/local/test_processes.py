"""Processes of a local run."""

import os
import subprocess
import sys

import pytest

from fedmtl_local.processes import LoggedProcess, Program

LOGS = """
from fedmtl_core import logs
logs.configure()
log = logs.get_logger()
log.info("a.went")
log.warning("b.failed", what="[info    ] no")
log.error("c.broke")
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no process to processors")
def test_processors_that_a_process_is_kept_from_do_not_count():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import fedmtl_local.processes as p; "
    done = subprocess.run([sys.executable, "-c", script + "print(p.num_processors())"], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize(
    ("level", "told"),
    [("info", ["a.went", "b.failed", "c.broke"]), ("warning", ["b.failed", "c.broke"]), ("error", ["c.broke"])],
)
def test_of_what_a_process_logs_is_told_what_is_of_a_level_and_its_file_has_all(level, told, tmp_path):
    (tmp_path / "logging_process.py").write_text(LOGS)
    lines: list[tuple[str, str]] = []
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = LoggedProcess(
        "one",
        Program("logging_process", environment=environment),
        tmp_path / "log",
        lambda name, line: lines.append((name, line.split("]")[1].split()[0])),
        log_level=level,
    )
    assert process.wait(60) == 0
    assert lines == [("one", event) for event in told]
    assert len((tmp_path / "log").read_text().splitlines()) == 3
