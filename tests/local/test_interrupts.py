"""What asks a program to stop reaches it, when it may."""

import signal
import threading
import time
import weakref

import pytest

from fedmtl_local.interrupts import STOPPING, interruptible, uninterrupted


@pytest.mark.parametrize("number", STOPPING)
def test_all_that_asks_to_stop_is_an_interrupt_and_afterwards_what_it_was(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_an_interrupt_that_python_drops_comes_again():
    """In the callback of a weak reference, where the collector may run at any time, what is raised goes nowhere."""
    referent = type("Referent", (), {})()
    reference = weakref.ref(referent, lambda _: signal.raise_signal(signal.SIGTERM))
    reached = []
    with pytest.raises(KeyboardInterrupt), interruptible():
        del referent
        reached.append(reference())
        time.sleep(30)
        reached.append("the end")
    assert reached == [None]


def test_an_interrupt_that_python_drops_comes_again_where_ctrl_c_is_ignored():
    """As in what a script's shell has in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    referent = type("Referent", (), {})()
    reference = weakref.ref(referent, lambda _: signal.raise_signal(signal.SIGTERM))
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            del referent
            time.sleep(30)
            pytest.fail(f"nothing came of {reference}")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_else_python_drops_is_reported_as_ever(monkeypatch):
    reported = []
    monkeypatch.setattr("sys.unraisablehook", lambda dropped: reported.append(dropped.exc_type))
    referent = type("Referent", (), {})()
    reference = weakref.ref(referent, lambda _: 1 / 0)
    with interruptible():
        del referent
    assert reference() is None
    assert reported == [ZeroDivisionError]


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
