"""Processes are started and stopped together."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from fedmtl_local.processes import uninterrupted


def test_an_interrupt_while_a_process_starts_comes_once_it_is_known():
    known = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            known.append("process")
        known.append("after")
    assert known == ["process"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_nothing_can_be_interrupted_nothing_is_put_off():
    done = []

    def start():
        with uninterrupted():
            done.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no process to processors")
def test_processors_that_a_process_is_kept_from_do_not_count():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import fedmtl_local.processes as p; "
    done = subprocess.run([sys.executable, "-c", script + "print(p.num_processors())"], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
