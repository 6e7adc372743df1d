"""The arithmetic of limits: buckets, rates, quotas and permits, with times that are made up."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_core.errors import LimitExceededError
from fedmtl_server.access.rates import PENALIZED_BURST, PENALTY_S, Decision, RateLimiter, TokenBucket
from fedmtl_server.access.semaphores import FairSemaphore, Permit, Quota
from fedmtl_server.rpc.caller_context import Caller, address_of

gaps = st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=200)


@settings(max_examples=100, deadline=None)
@given(rate=st.floats(0.1, 100), burst=st.integers(1, 50), waits=gaps)
def test_in_any_stretch_of_time_a_bucket_grants_its_burst_and_its_rate_and_no_more(rate, burst, waits):
    bucket, now, granted = TokenBucket(rate, burst, 0.0), 0.0, []
    for wait in waits:
        now += wait
        if bucket.take(now) == 0:
            granted.append(now)
    for i, first in enumerate(granted):
        for j, last in enumerate(granted[i:], start=1):
            assert j <= burst + rate * (last - first) + 1e-6


@settings(max_examples=100, deadline=None)
@given(rate=st.floats(0.1, 100), burst=st.integers(1, 50), waits=gaps)
def test_who_waits_as_long_as_it_is_told_is_let_through(rate, burst, waits):
    bucket, now = TokenBucket(rate, burst, 0.0), 0.0
    for wait in waits:
        now += wait
        told = bucket.take(now)
        if told:
            assert told <= 1 / rate + 1e-9
            now += told + 1e-6
            assert bucket.take(now) == 0


def test_a_bucket_counts_by_hand():
    bucket = TokenBucket(rate=2, burst=3, now=10)
    assert [bucket.take(10) for _ in range(4)] == [0, 0, 0, 0.5]
    assert bucket.take(10.25) == 0.25
    assert bucket.take(10.5) == 0
    assert not bucket.is_full(11.9)
    assert bucket.is_full(12.0)
    assert bucket.take(5) == 0  # a clock that went back takes nothing away


def test_a_caller_is_refused_beyond_its_pace_and_hung_up_on_when_it_goes_on():
    limiter = RateLimiter(rate=1, burst=2, refusals=3)
    decisions = [limiter.check("a", "here", 0)[0] for _ in range(6)]
    assert decisions == [Decision.ADMITTED] * 2 + [Decision.REFUSED] * 3 + [Decision.HANG_UP]
    assert limiter.check("b", "elsewhere", 0) == (Decision.ADMITTED, 0)


def test_a_caller_that_comes_back_when_it_was_told_is_never_hung_up_on():
    limiter, now = RateLimiter(rate=1, burst=1, refusals=2), 0.0
    for _ in range(50):
        decision, wait_s = limiter.check("a", "here", now)
        assert decision is not Decision.HANG_UP
        now += wait_s


def test_a_new_connection_from_where_one_was_hung_up_on_may_do_little_for_a_while():
    limiter = RateLimiter(rate=0.001, burst=100, refusals=1)
    while limiter.check("here:1", "here", 0)[0] is not Decision.HANG_UP:
        pass
    again = [limiter.check("here:2", "here", 1)[0] for _ in range(PENALIZED_BURST + 1)]
    assert again == [Decision.ADMITTED] * PENALIZED_BURST + [Decision.REFUSED]
    elsewhere = [limiter.check("there:1", "there", 1)[0] for _ in range(PENALIZED_BURST + 1)]
    assert elsewhere == [Decision.ADMITTED] * (PENALIZED_BURST + 1)
    later = [limiter.check("here:3", "here", PENALTY_S + 1)[0] for _ in range(PENALIZED_BURST + 1)]
    assert later == [Decision.ADMITTED] * (PENALIZED_BURST + 1)


def test_what_is_kept_of_callers_does_not_grow_with_their_number():
    limiter = RateLimiter(rate=10, burst=2, refusals=2)
    for number in range(100_000):
        limiter.check(f"caller-{number}", "here", number / 10)
    assert len(limiter) <= 200


def test_a_quota_is_for_each_caller_and_tells_what_is_allowed():
    quota = Quota("downloads", 2)
    for caller in ("a", "a", "b"):
        quota.acquire(caller)
    with pytest.raises(LimitExceededError, match="downloads: at most 2 at once for a client, it has 2") as refusal:
        quota.acquire("a")
    assert refusal.value.retry_after_s > 0
    quota.release("a")
    quota.acquire("a")
    assert len(quota) == 3


class Room:
    """Permits and those who come for them, in words."""

    def __init__(self, *args, **kwargs):
        self.semaphore = FairSemaphore(*args, **kwargs)
        self.state = {}
        self._permits = {}

    def come(self, name, now=0.0):
        """A permit of the group that is the name's first letter."""

        def become(what):
            self.state[name] = what

        become("waits")
        permit = Permit(name[0], now, lambda: become("has"), lambda: become("ended"))
        self._permits[name] = permit
        self.semaphore.acquire(permit, now)
        return self.state[name]

    def go(self, name, now=0.0):
        self.semaphore.release(self._permits[name], now)
        self.state[name] = "gone"

    def progress(self, name, now):
        self.semaphore.note_progress(self._permits[name], now)


def test_places_are_had_as_long_as_there_are_any_then_waited_for_in_order():
    room = Room(2, max_waiting=2)
    assert [room.come(name) for name in ("a1", "b1", "c1", "d1", "e1")] == ["has", "has", "waits", "waits", "ended"]
    room.go("a1")
    assert room.state["c1"] == "has"
    room.go("d1")
    room.go("b1")
    assert room.semaphore.num_held == 1
    assert room.semaphore.num_waiting == 0


def test_a_group_that_has_the_most_gives_way_with_what_is_furthest_behind():
    room = Room(3)
    for name in ("a1", "a2", "a3"):
        room.come(name)
    room.progress("a1", 5)
    assert room.come("b1", 6) == "has"
    assert room.state["a2"] == "ended"
    assert room.come("c1", 6) == "has"
    assert room.state["a3"] == "ended"
    assert room.come("d1", 6) == "ended"  # everybody has one
    assert room.come("b2", 6) == "ended"
    assert room.state["a1"] == "has"


def test_one_that_stalls_gives_way_when_another_comes_or_waits():
    room = Room(2, max_waiting=1, stall_s=2)
    room.come("a1", 0)
    room.come("b1", 0)
    assert room.come("c1", 1) == "waits"
    room.progress("b1", 1)
    room.semaphore.revoke_stalled(1.9)
    assert room.state["c1"] == "waits"
    room.semaphore.revoke_stalled(2.0)
    assert (room.state["a1"], room.state["b1"], room.state["c1"]) == ("ended", "has", "has")
    assert room.come("d1", 3.5) == "has"
    assert room.state["b1"] == "ended"


def test_the_time_in_line_is_no_standing_still():
    room = Room(1, max_waiting=2, stall_s=2)
    for name in ("a1", "b1", "c1"):
        room.come(name, 0)
    room.semaphore.revoke_stalled(2)
    assert (room.state["a1"], room.state["b1"], room.state["c1"]) == ("ended", "has", "waits")
    room.go("b1", 9)
    assert room.state["c1"] == "has"
    assert room.come("d1", 10.9) == "waits"
    assert room.come("e1", 11) == "waits"


def test_the_turn_is_the_groups_with_the_fewest_places():
    room = Room(2, max_waiting=4)
    for name in ("a1", "a2", "a3", "a4"):
        room.come(name)
    assert room.come("b1") == "has"  # a gives way: it has two more
    assert room.come("c1") == "waits"  # everybody has one
    room.go("b1")
    assert room.state["c1"] == "has"  # though others came before it
    assert room.state["a3"] == "waits"


def test_in_a_full_line_the_group_that_has_the_most_in_it_gives_way():
    room = Room(1, max_waiting=3)
    for name in ("a1", "b1", "b2", "b3"):
        room.come(name)
    assert room.come("c1") == "waits"
    assert room.state["b3"] == "ended"
    assert room.come("b4") == "ended"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=120), st.integers(1, 6))
def test_however_they_come_and_go_nobody_has_two_more_than_one_that_waits(steps, capacity):
    room, inside = Room(capacity, max_waiting=1000), []
    for number, (group, comes) in enumerate(steps):
        if comes or not inside:
            room.come(f"{group}{number}", number)
            inside.append(f"{group}{number}")
        else:
            room.go(inside.pop(number % len(inside)))
        has = [name for name, state in room.state.items() if state == "has"]
        waits = [name for name, state in room.state.items() if state == "waits"]
        assert len(has) == room.semaphore.num_held <= capacity
        assert not waits or len(has) == capacity
        counts = {one: sum(name[0] == one for name in has) for one in "abcdef"}
        assert all(max(counts.values()) <= counts[name[0]] + 1 for name in waits)


def test_without_an_identity_a_client_is_its_connection_and_the_name_it_gives():
    one, other = Caller("ipv4:127.0.0.1:1", "a"), Caller("ipv4:127.0.0.1:2", "a")
    assert one.client != other.client
    assert (one.group, other.group) == ("ipv4:127.0.0.1:1", "ipv4:127.0.0.1:2")
    assert Caller("ipv4:127.0.0.1:1", "b").group == one.group


def test_with_an_identity_a_client_is_that_wherever_it_calls_from():
    callers = [Caller(f"ipv4:127.0.0.1:{port}", name, "hospital") for port, name in ((1, "a"), (2, "b"))]
    assert {caller.client for caller in callers} == {caller.group for caller in callers} == {"hospital"}


def test_an_address_is_a_peer_without_its_port():
    assert address_of("ipv4:10.0.0.1:5") == "ipv4:10.0.0.1"
    assert address_of("ipv6:%5B::1%5D:5") == "ipv6:%5B::1%5D"
    assert address_of("unix:/tmp/socket") == "unix:/tmp/socket"


def test_places_that_cannot_be_taken_away_for_standing_still_are_not():
    room = Room(1, stall_s=math.inf)
    room.come("a1", 0)
    assert room.come("b1", 1e9) == "ended"
