"""Quorums of clients with several tasks, against trying out every choice."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_server.rounds.quorums import lacking, lacking_text, meet, spread

TASKS = ["a", "b", "c"]
offered = st.lists(st.sampled_from(TASKS), min_size=1, max_size=3, unique=True).map(tuple)
clients = st.dictionaries(st.sampled_from([f"c{n}" for n in range(6)]), offered, max_size=6)
quorums = st.fixed_dictionaries({task: st.integers(0, 3) for task in TASKS})


def every_choice(offers):
    return [dict(zip(offers, choice, strict=True)) for choice in product(*offers.values())]


def num_filled(tasks, needs):
    """Places of quorums that are filled."""
    have = Counter(tasks.values())
    return sum(min(have[task], needed) for task, needed in needs.items())


def num_changed(tasks, wanted):
    return sum(tasks[client_id] != wanted[client_id] for client_id in wanted)


@given(clients, quorums)
def test_what_is_lacking_is_what_the_best_of_all_choices_lacks(offers, needs):
    fewest = sum(needs.values()) - max(num_filled(one, needs) for one in every_choice(offers))
    found = lacking(offers, needs)
    assert sum(found.values()) == fewest
    assert all(0 < count <= needs[task] for task, count in found.items())


@given(clients, quorums, st.data())
def test_as_many_places_as_possible_are_filled_by_changing_as_few_clients_as_possible(offers, needs, data):
    wanted = {client_id: data.draw(st.sampled_from(tasks)) for client_id, tasks in offers.items()}
    tasks = meet(offers, wanted, needs, data.draw(st.permutations(list(offers))))
    choices = every_choice(offers)
    most = max(num_filled(one, needs) for one in choices)
    fewest = min(num_changed(one, wanted) for one in choices if num_filled(one, needs) == most)
    assert list(tasks) == list(wanted)
    assert all(task in offers[client_id] for client_id, task in tasks.items())
    assert (num_filled(tasks, needs), num_changed(tasks, wanted)) == (most, fewest)


def test_a_client_gives_way_to_one_that_can_do_nothing_else():
    """x is wanted for a, and so is y, which has nothing else: x takes b over from z, and z goes to c."""
    offers = {"x": ("a", "b"), "y": ("a",), "z": ("b", "c")}
    assert meet(offers, {"x": "a", "y": "a", "z": "b"}, {"a": 1, "b": 1, "c": 1}) == {"x": "b", "y": "a", "z": "c"}


def test_of_clients_that_could_be_moved_the_first_in_the_order_are():
    offers = dict.fromkeys("xyz", ("a", "b"))
    wanted = dict.fromkeys("xyz", "a")
    assert meet(offers, wanted, {"b": 1}, ["z", "x", "y"]) == {"x": "a", "y": "a", "z": "b"}
    assert meet(offers, wanted, {"b": 2}, ["z", "x", "y"]) == {"x": "b", "y": "a", "z": "b"}


def test_clients_are_spread_over_what_lacks_most():
    """b lacks 2, a lacks 1 less the client that has nothing else."""
    offers = {"p": ("a", "b"), "q": ("a", "b"), "r": ("a",), "s": ("a", "b")}
    assert spread(offers, {"a": 1, "b": 2}) == {"r": "a", "p": "b", "q": "b", "s": "a"}


def test_a_thousand_clients_that_all_want_one_task_are_moved_in_a_few_steps():
    """1,000 clients fill ten quorums of 100, and lack 10 for quorums of 101."""
    tasks = tuple("abcdefghij")
    offers = {f"c{n:04d}": tasks for n in range(1000)}
    found = meet(offers, dict.fromkeys(offers, "a"), dict.fromkeys(tasks, 100))
    assert Counter(found.values()) == dict.fromkeys(tasks, 100)
    assert sum(lacking(offers, dict.fromkeys(tasks, 101)).values()) == 10


ONE_EACH = {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("tasks", "chosen", "needs", "text"),
    [
        ({"x": "ab", "y": "a"}, {}, {"a": 1, "b": 1}, ""),
        ({}, {}, {"a": 2, "b": 1}, "2 more a clients, 1 more b client"),
        ({"x": "ab", "y": "c"}, {}, ONE_EACH, "1 more b client (x has it too, but is needed for a)"),
        ({"x": "abc", "y": "a"}, {"x": "a"}, {"a": 1, "b": 1}, "1 more b client (x has it too, but has chosen a)"),
        ({"x": "ab", "y": "bc"}, {"y": "c"}, {"b": 2}, "1 more b client (y has it too, but has chosen c)"),
    ],
)
def test_who_could_have_a_task_that_lacks_clients_is_named_with_why_it_has_not(tasks, chosen, needs, text):
    offers = {client: chosen.get(client, names) for client, names in tasks.items()}
    assert lacking_text(offers, tasks, needs) == text
