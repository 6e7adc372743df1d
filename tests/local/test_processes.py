"""Processes are started and stopped together."""

import signal
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
