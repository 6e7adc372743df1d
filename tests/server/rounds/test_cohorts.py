"""Who is asked to take part in a round."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.config import RoundsConfig
from fedmtl_server.rounds.cohorts import choose_cohort, num_enough

TEN = {f"c{number}": "sst2" for number in range(10)}
MIXED = TEN | {"q0": "qqp", "q1": "qqp", "r0": "stsb"}


EVERYBODY = RoundsConfig()


def fraction(share) -> RoundsConfig:
    return RoundsConfig(cohort="fraction", cohort_fraction=share)


def over_select(size, extra) -> RoundsConfig:
    return RoundsConfig(cohort="over_select", cohort_size=size, cohort_extra=extra)


def choose(rounds, present, round_, min_clients, attempt=0, seed=0):
    return choose_cohort(rounds, present, round_, min_clients, seed, attempt)


def counts(chosen):
    return dict(Counter(chosen.values()))


def test_all_are_asked_unless_it_says_otherwise():
    assert choose(EVERYBODY, {"b": "qqp", "a": "sst2"}, 1, {}) == {"a": "sst2", "b": "qqp"}
    assert list(choose(EVERYBODY, {"b": "qqp", "a": "sst2"}, 1, {})) == ["a", "b"]


def test_a_fraction_is_of_each_tasks_clients_so_that_every_head_gets_its_updates():
    chosen = choose(fraction(0.3), MIXED, 1, {})
    assert counts(chosen) == {"sst2": 3, "qqp": 1, "stsb": 1}  # 3 of 10; 0.6 and 0.3 are one
    assert chosen.items() <= MIXED.items()


@pytest.mark.parametrize(("share", "num_clients", "num_chosen"), [(0.07, 100, 7), (0.55, 100, 55), (0.14, 50, 7)])
def test_a_fraction_is_what_it_says_to_the_client(share, num_clients, num_chosen):
    """In floats 0.07 * 100 is a little more than 7, and would be rounded up to 8."""
    present = {f"c{number}": "sst2" for number in range(num_clients)}
    assert len(choose(fraction(share), present, 1, {})) == num_chosen


def test_a_fraction_of_one_is_all():
    assert choose(fraction(1.0), MIXED, 1, {}) == MIXED


def test_the_quorum_is_asked_though_the_fraction_is_less():
    chosen = choose(fraction(0.1), MIXED, 1, {"sst2": 4, "qqp": 9})
    assert counts(chosen) == {"sst2": 4, "qqp": 2, "stsb": 1}  # of qqp there are no more


def test_over_selecting_asks_some_more_of_each_task_than_are_needed():
    chosen = choose(over_select(2, 3), MIXED, 1, {"sst2": 1})
    assert counts(chosen) == {"sst2": 5, "qqp": 2, "stsb": 1}


def test_over_selecting_asks_the_quorum_at_least():
    assert counts(choose(over_select(1, 1), TEN, 1, {"sst2": 7})) == {"sst2": 7}


def test_every_round_and_attempt_and_seed_draws_anew():
    rule = fraction(0.5)
    by_round = {tuple(choose(rule, TEN, round_, {})) for round_ in range(20)}
    by_attempt = {tuple(choose(rule, TEN, 1, {}, attempt)) for attempt in range(20)}
    by_seed = {tuple(choose(rule, TEN, 1, {}, seed=seed)) for seed in range(20)}
    assert min(len(by_round), len(by_attempt), len(by_seed)) > 10  # of 252 that there are


def test_before_long_everybody_has_been_asked():
    rule = fraction(0.1)
    assert {client_id for round_ in range(100) for client_id in choose(rule, TEN, round_, {})} == set(TEN)


def test_a_draw_is_the_same_on_every_machine():
    """Whatever order the clients came in, and whatever Python's hash of a text is today."""
    rule = fraction(0.3)
    drawn = choose(rule, TEN, 1, {}, seed=42)
    assert list(drawn) == ["c4", "c6", "c9"]
    assert choose(rule, dict(reversed(TEN.items())), 1, {}, seed=42) == drawn


def test_one_tasks_clients_do_not_change_who_is_drawn_of_another():
    rule = fraction(0.3)
    of_mixed = choose(rule, MIXED, 1, {})
    assert [client_id for client_id, task in of_mixed.items() if task == "sst2"] == list(choose(rule, TEN, 1, {}))


@pytest.mark.parametrize(
    ("rule", "num_members", "min_clients", "enough"),
    [
        (EVERYBODY, 5, 1, 5),
        (fraction(0.5), 5, 1, 5),
        (over_select(2, 3), 5, 1, 2),
        (over_select(2, 3), 5, 4, 4),
        (over_select(2, 3), 1, 1, 1),
        (over_select(2, 3), 3, 9, 3),
    ],
)
def test_what_is_enough_is_all_of_the_cohort_or_with_over_selecting_the_size_or_the_quorum(
    rule, num_members, min_clients, enough
):
    assert num_enough(rule, num_members, min_clients) == enough


names = st.text("abcdefgh0123", min_size=1, max_size=4)
tasks = st.sampled_from(["sst2", "qqp", "stsb"])
rules = st.builds(
    RoundsConfig,
    cohort=st.sampled_from(["all", "fraction", "over_select"]),
    cohort_fraction=st.floats(0, 1, exclude_min=True),
    cohort_size=st.integers(1, 5),
    cohort_extra=st.integers(0, 5),
)


@given(
    rules,
    st.dictionaries(names, tasks, max_size=20),
    st.integers(1, 1000),
    st.dictionaries(tasks, st.integers(0, 5)),
    st.integers(0, 2**63),
)
def test_a_cohort_is_of_those_present_has_every_task_and_its_quorum_and_is_drawn_the_same_again(
    rule, present, round_, min_clients, seed
):
    chosen = choose(rule, present, round_, min_clients, seed=seed)
    assert chosen.items() <= present.items()
    assert list(chosen) == sorted(chosen)
    assert choose(rule, dict(reversed(present.items())), round_, min_clients, seed=seed) == chosen
    there, asked = Counter(present.values()), Counter(chosen.values())
    for task in there:
        assert asked[task] >= min(there[task], max(1, min_clients.get(task, 0)))
        enough = num_enough(rule, asked[task], min_clients.get(task, 0))
        assert min(asked[task], min_clients.get(task, 0), 1) <= enough <= asked[task]
