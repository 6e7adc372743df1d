"""What a round says that it waits for."""

from fedmtl_server.rounds.waiting import waiting_for
from tests.server.rounds.driven import claim, delta, finish_round, opened, opened_async, opened_with, over_selected


def test_the_time_left_is_that_of_those_who_have_not_reported():
    rounds = opened(task_deadline_s={"qqp": 300.0})
    assert waiting_for(rounds.view, 1.0) == "2 of 2 updates: a (sst2), b (qqp), 299 s left"
    rounds.count(claim("b", "qqp"))
    assert waiting_for(rounds.view, 1.0) == "1 of 2 updates: a (sst2), 99 s left"


def test_the_time_left_is_no_more_than_a_member_that_left_is_waited_for():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.leave("b", 10.0)
    assert waiting_for(rounds.view, 11.0) == "1 of 2 updates: b (qqp), 4 s left"


def test_a_moving_upload_has_time_left_past_the_deadline():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.progress("b", 98.0)
    assert waiting_for(rounds.view, 101.0) == "1 of 2 updates: b (qqp), 7 s left"  # 98 + 10 - 101


def test_of_more_clients_than_are_needed_only_as_many_updates_are_waited_for_as_are_enough():
    rounds = over_selected(size=2, extra=1)
    assert waiting_for(rounds.view, 0.0) == "2 of 2 updates: a (sst2), b (sst2), c (sst2), 100 s left"
    rounds.count(claim("b"))
    assert waiting_for(rounds.view, 0.0) == "1 of 2 updates: a (sst2), c (sst2), 100 s left"


def test_a_task_that_has_enough_is_not_waited_for():
    clients = {"a": "sst2", "b": "sst2", "c": "qqp"}
    rounds = opened_with(clients, cohort="over_select", cohort_size=1, cohort_extra=2)
    rounds.count(claim("a"))
    assert waiting_for(rounds.view, 0.0) == "1 of 2 updates: c (qqp), 100 s left"


def test_an_asynchronous_round_waits_for_no_more_updates_than_it_has_clients():
    rounds = opened_async("abc", buffer_size=10)
    rounds.count(delta("b"))
    assert waiting_for(rounds.view, 0.0) == "2 of 3 updates: a (sst2), c (sst2), 100 s left"


def test_of_many_that_are_waited_for_the_first_are_named():
    rounds = opened_with(dict.fromkeys("abcdefg", "sst2"), min_clients={"sst2": 1})
    names = ", ".join(f"{name} (sst2)" for name in "abcde")
    assert waiting_for(rounds.view, 0.0) == f"7 of 7 updates: {names} and 2 more, 100 s left"


def test_an_evaluation_that_nobody_is_there_for_says_how_long_it_waits():
    rounds = opened(num_rounds=1)
    finish_round(rounds, 1)
    rounds.leave("a", 1.0)
    rounds.leave("b", 1.0)
    assert waiting_for(rounds.view, 1.0) == "1 more sst2 client, 1 more qqp client, 30 s left"
