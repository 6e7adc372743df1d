"""What asks a program to stop reaches it, when it may."""

import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from fedmtl_local.interrupts import STOPPING, interruptible, uninterrupted


@pytest.fixture(autouse=True)
def _as_python_starts():
    """No signal is ignored, as SIGHUP is where `nohup` runs the tests, and SIGINT in the background of a script."""
    handlers = dict.fromkeys(STOPPING, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    referent = type("Referent", (), {})()
    reference = weakref.ref(referent, lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt), interruptible():
        del referent
        time.sleep(30)
        pytest.fail(f"nothing came of {reference}")


@pytest.mark.parametrize("context", [interruptible, uninterrupted])
def test_a_signal_that_is_ignored_stays_so(context):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with context():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_an_ignored_signal_hides_no_interrupt_while_a_process_starts():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)


def test_a_process_ignores_what_its_parent_does():
    told = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with uninterrupted():
        started = subprocess.Popen([sys.executable, "-c", told], stdout=subprocess.PIPE, text=True)
    assert started.communicate(timeout=60)[0] == "True\n"


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
