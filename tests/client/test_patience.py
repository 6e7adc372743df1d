"""Calling again while a server is away, and what the log says of it."""

import threading

import pytest
from structlog.testing import capture_logs

from fedmtl_client.patience import STEADY_S, Losses, Patience
from fedmtl_core.errors import IntermediaryError, InvalidRequestError, UnavailableError


@pytest.fixture
def patience(monkeypatch):
    """It waits for no time at all."""
    monkeypatch.setattr("fedmtl_client.patience.random.uniform", lambda low, high: 0.0)
    return Patience("h:1", 300.0, threading.Event(), lambda: None)


def failing(times, error=UnavailableError):
    """A call that fails so often, and is then answered."""
    left = iter(range(times))

    def attempt():
        if next(left, None) is not None:
            raise error("away")
        return "answer"

    return attempt


def never():
    return False


def of(logs, event):
    return [line for line in logs if line["event"] == event]


def test_an_outage_is_logged_ever_more_rarely_and_its_end_once(patience):
    with capture_logs() as logs:
        assert patience.keep_trying("GetSlice", failing(100), never) == "answer"
    assert [line["attempt"] for line in of(logs, "server.away")] == [1, 2, 4, 8, 16, 32, 64]
    assert len(of(logs, "server.back")) == 1


def test_credentials_are_renewed_before_every_retry_whether_its_failure_is_logged_or_not(monkeypatch):
    monkeypatch.setattr("fedmtl_client.patience.random.uniform", lambda low, high: 0.0)
    renewals = []
    patience = Patience("h:1", 300.0, threading.Event(), lambda: renewals.append(len(renewals)))
    with capture_logs() as logs:
        assert patience.keep_trying("GetSlice", failing(6), never) == "answer"
    assert len(renewals) == 6
    assert [line["attempt"] for line in of(logs, "server.away")] == [1, 2, 4]


def test_each_call_counts_its_own_attempts_and_says_which_it_is(patience):
    def slice_():
        patience.keep_trying("PushUpdate", failing(3), never)
        return failing_watch()

    failing_watch = failing(2)
    with capture_logs() as logs:
        patience.keep_trying("WatchRounds", slice_, never)
    told = [(line["call"], line["attempt"]) for line in of(logs, "server.away")]
    assert told[:2] == [("PushUpdate", 1), ("PushUpdate", 2)]
    assert [attempt for call, attempt in told if call == "WatchRounds"] == [1, 2]


def test_of_two_calls_in_one_outage_only_the_first_that_is_answered_ends_it(patience):
    """The other has been away for as long, and no longer."""

    def watch():
        if not of(logs, "server.away"):
            raise UnavailableError("away")
        patience.keep_trying("GetSlice", failing(0), never)
        patience.keep_trying("PushUpdate", failing(1), never)
        return "event"

    with capture_logs() as logs:
        patience.keep_trying("WatchRounds", watch, never)
    assert [line["call"] for line in of(logs, "server.away")] == ["WatchRounds", "PushUpdate"]
    assert len(of(logs, "server.back")) == 1


def test_a_call_that_never_failed_says_nothing(patience):
    with capture_logs() as logs:
        patience.keep_trying("GetSlice", failing(0), never)
        with pytest.raises(InvalidRequestError):
            patience.keep_trying("GetSlice", failing(1, InvalidRequestError), never)
    assert logs == []


class Clock:
    """A time that goes on when it is told to, and waits that take it."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("fedmtl_client.patience.time.monotonic", lambda: self.now)
        monkeypatch.setattr("fedmtl_client.patience.random.uniform", lambda low, high: high)
        self.closed = threading.Event()
        self.closed.wait = self.wait

    def wait(self, seconds):
        self.now += seconds


def lose(losses, clock, error, lasted_s=0.0):
    losses.opened()
    clock.now += lasted_s
    losses.note(error)
    before = clock.now
    losses.wait()
    return clock.now - before


def test_streams_that_end_at_once_are_opened_ever_more_rarely_and_given_up(monkeypatch):
    clock = Clock(monkeypatch)
    losses = Losses(Patience("h:1", 60.0, clock.closed, lambda: None))
    with capture_logs() as logs:
        waits = [lose(losses, clock, IntermediaryError("cut")) for _ in range(10)]
        with pytest.raises(
            IntermediaryError, match=r"each stream of events from h:1 .* \(client.reconnect_s\).*: cut$"
        ):
            for _ in range(10):
                lose(losses, clock, IntermediaryError("cut"))
    assert waits[:7] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0])
    assert len(of(logs, "server.lost")) == 4  # of 1, 2, 4 and 8


def test_a_stream_that_lasted_is_opened_again_at_once_and_a_server_that_leaves_is_waited_for(monkeypatch):
    clock = Clock(monkeypatch)
    losses = Losses(Patience("h:1", 60.0, clock.closed, lambda: None))
    assert [lose(losses, clock, IntermediaryError("cut"), lasted_s=STEADY_S) for _ in range(20)] == [0.0] * 20
    for _ in range(30):
        lose(losses, clock, UnavailableError("restarting"))
    assert lose(losses, clock, None) == 10.0
