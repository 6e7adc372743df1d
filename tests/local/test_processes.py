"""Processes of a local run."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no process to processors")
def test_processors_that_a_process_is_kept_from_do_not_count():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import fedmtl_local.processes as p; "
    done = subprocess.run([sys.executable, "-c", script + "print(p.num_processors())"], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
