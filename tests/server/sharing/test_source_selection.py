"""The selection of source tasks: which sets are tried and when, and which comparisons decide."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedmtl_core.identifiers import require_identifier
from fedmtl_server.sharing.selection_rules import DIVERGED, Comparison, SelectionRules
from fedmtl_server.sharing.source_selection import Candidate, Selection, candidates, decided, sources_of, taken

TASKS = ("a", "b", "c", "d")
RULES = SelectionRules(trials=9, error_rate=0.05, min_gain=0.02, num_trials=100)
ALONE, PAIR = Selection("a", ("a",)), Selection("a", ("a", "b"))
OWN, WITH_B, WITH_C = Candidate("own", ("a",)), Candidate("with.b", ("a", "b")), Candidate("with.c", ("a", "c"))


def offered(selection=ALONE, present=TASKS, order=None, round_=2, rules=RULES):
    return [(one.name, one.sources) for one in candidates(selection, TASKS, present, order or {}, round_, rules)]


def names(*args, **fields):
    return [name for name, _ in offered(*args, **fields)]


def compared(z, *, gain=0.5, error=0.01, rows=100_000, beyond=-99.0, lowers_metric=False):
    """A comparison with this number of standard errors and this reduction of the loss; below 0 is better. Compared with
    the control, it has `beyond` standard errors; None for no control."""
    difference = z * error
    model = -difference / math.copysign(gain, -z)
    control = None if beyond is None else Comparison(1.0, beyond * error, error, rows)
    return Comparison(model + difference, difference, error, rows, lowers_metric, control)


# The candidates.


def test_a_task_alone_tries_each_other_task_by_priority():
    assert offered(order={"b": -0.5, "c": 2.1, "d": 0.3}) == [
        ("with.c", ("a", "c")),
        ("with.d", ("a", "d")),
        ("with.b", ("a", "b")),
    ]


def test_sources_are_in_the_runs_order_and_equal_priorities_by_name():
    third = Selection("c", ("c",))
    assert offered(third)[:2] == [("with.a", ("a", "c")), ("with.b", ("b", "c"))]


def test_a_task_with_other_sources_compares_with_its_own_updates_first():
    pair = Selection("a", ("a", "b"), scores={"with.c": -9.0})
    assert offered(pair, rules=SelectionRules(trials=1)) == [("own", ("a",))]
    three = Selection("a", ("a", "b", "c"))
    assert offered(three) == [
        ("own", ("a",)),
        ("with.d", TASKS),
        ("without.b", ("a", "c")),
        ("without.c", ("a", "b")),
    ]


def test_no_set_of_sources_is_tried_twice_under_two_names():
    assert names(PAIR, present=("a", "b")) == ["own"]  # without.b is its own updates
    assert names(present=("a", "b")) == ["with.b"]
    for selection in (ALONE, PAIR, Selection("a", TASKS)):
        sets = [frozenset(sources) for _, sources in offered(selection)]
        assert len({*sets, frozenset(selection.sources)}) == len(sets) + 1


def test_names_fit_a_variant_however_long_the_tasks_names_are():
    long = ["x" * 63 + end for end in "ab"]
    tasks = ("a", *long, "y" * 56, "z" * 57)
    for now in (("a",), tasks[:-1]):
        found = [one.name for one in candidates(Selection("a", now), tasks, tasks, {}, 2, RULES)]
        assert len(set(found)) == len(found) >= 4
        for name in found:
            require_identifier("the name of a variant", name)
    assert {"without." + "y" * 56, "with." + "z" * 57} <= set(found)


def test_one_task_has_nothing_to_try():
    assert candidates(ALONE, ("a",), ("a",), {}, 2, RULES) == []


def test_what_has_been_tried_comes_after_what_has_not_and_the_best_of_it_first():
    selection = Selection("a", ("a",), scores={"with.b": -1.0, "with.c": -2.5})
    assert names(selection, order={"b": 9.0}) == ["with.d", "with.c", "with.b"]
    assert names(selection, rules=SelectionRules(trials=2)) == ["with.d", "with.c"]


def test_a_source_without_an_update_in_the_round_stays_and_is_no_reason_for_a_trial():
    """With b away, (a, b) and (a) are the same model."""
    assert names(PAIR, present=("a",)) == []
    assert offered(PAIR, present=("a", "c", "d")) == [
        ("with.c", ("a", "b", "c")),
        ("with.d", ("a", "b", "d")),
    ]
    assert decided(PAIR, [], {}, 2, RULES) == (PAIR, None)
    joined, accepted = decided(PAIR, [Candidate("with.c", ("a", "b", "c"))], {"with.c": compared(-50)}, 2, RULES)
    assert (joined, accepted.name) == (Selection("a", ("a", "b", "c")), "with.c")


def test_a_candidate_that_keeps_failing_is_tried_again_2_4_and_then_8_rounds_later():
    selection, tried = ALONE, []
    for round_ in range(1, 40):
        if "with.b" in names(selection, round_=round_):
            tried.append(round_)
            selection, accepted = decided(selection, [WITH_B], {"with.b": compared(0.5)}, round_, RULES)
            assert accepted is None
    assert [later - earlier for earlier, later in itertools.pairwise(tried)] == [2, 4, 8, 8, 8, 8]


def test_one_that_is_better_but_not_by_the_margins_is_tried_again_at_once_and_its_failures_are_forgotten():
    selection = Selection("a", ("a",), failures={"with.b": 3}, next_round={"with.b": 5})
    selection, accepted = decided(selection, [WITH_B], {"with.b": compared(-1)}, 5, RULES)
    assert accepted is None
    assert (selection.failures["with.b"], selection.next_round["with.b"]) == (0, 6)
    assert "with.b" in names(selection, round_=6)


def test_a_candidate_that_diverged_waits_and_does_not_come_first_for_ever():
    selection, accepted = decided(ALONE, [WITH_B], {"with.b": DIVERGED}, 2, RULES)
    assert accepted is None
    assert (selection.failures, selection.next_round) == ({"with.b": 1}, {"with.b": 4})
    assert names(selection, round_=3, rules=SelectionRules(trials=1)) == ["with.c"]
    assert names(selection, round_=4)[-1] == "with.b"


def test_one_that_nobody_has_compared_is_tried_again_at_once():
    assert decided(ALONE, [WITH_B], {}, 2, RULES) == (ALONE, None)
    assert names(round_=3)[0] == "with.b"


@given(
    st.sets(st.sampled_from(TASKS[1:])),
    st.sets(st.sampled_from(TASKS[1:])),
    st.integers(1, 16),
    st.dictionaries(st.sampled_from(["with.b", "without.b", "with.c"]), st.integers(1, 5)),
)
def test_candidates_always_change_the_model_in_tasks_that_are_present(sources, present, trials, waits):
    now = Selection("a", tuple(sorted({"a", *sources})), next_round=waits)
    here = {"a", *present}
    found = candidates(now, TASKS, here, {}, 3, SelectionRules(trials=trials))
    assert len(found) <= trials
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert "a" in one.sources
        assert tuple(sorted(one.sources)) == one.sources
        assert set(one.sources) & here != set(now.sources) & here
        assert one.name == "own" or set(one.sources) - here == set(now.sources) - here


# The decisions.


@pytest.mark.parametrize(("rate", "num_trials"), [(0.05, 1), (0.05, 45), (0.2, 1000), (1e-17, 3), (1e-300, 10)])
def test_the_margin_of_joining_is_bonferronis_quantile(rate, num_trials):
    rules = SelectionRules(error_rate=rate, num_trials=num_trials)
    assert rules.z_join == pytest.approx(stats.norm.isf(rate / num_trials), rel=1e-6)
    assert rules.z_leave == pytest.approx(stats.norm.isf(rate), rel=1e-6)


def test_margins_are_finite_without_any_trial_and_for_the_smallest_rate():
    assert SelectionRules(num_trials=0).z_join == SelectionRules().z_leave
    assert math.isfinite(SelectionRules(error_rate=5e-324, num_trials=10).z_join)


@pytest.mark.parametrize("rows", [10, 20, 50, 200])
@pytest.mark.parametrize("t", [-4.0, -2.0, 1.0, 3.3])
def test_few_rows_count_as_students_distribution_says(rows, t):
    expected = stats.norm.isf(stats.t.sf(t, rows - 1))
    assert Comparison(1.0, t / 100, 0.01, rows).z == pytest.approx(expected, abs=0.01)


def test_two_rows_that_happen_to_agree_are_no_evidence():
    """A t of 4 with one degree of freedom is reached by chance in 8 % of all trials."""
    assert abs(Comparison(0.9, -0.04, 0.01, 2).z) < stats.norm.isf(0.05)
    assert abs(Comparison(0.9, -0.04, 0.01, 100_000).z) == pytest.approx(4, abs=1e-3)


def test_joining_needs_both_margins():
    z = RULES.z_join
    for margin, gain, joins in [
        (1.001, 0.021, True),
        (0.999, 0.5, False),
        (50, 0.019, False),
    ]:
        selection, accepted = decided(ALONE, [WITH_B], {"with.b": compared(-z * margin, gain=gain)}, 4, RULES)
        assert (accepted == WITH_B, selection.sources == ("a", "b")) == (joins, joins)


@pytest.mark.parametrize(
    ("fields", "joins"),
    [
        ({"lowers_metric": True}, False),
        ({"beyond": None}, False),
        ({"beyond": 0.0}, False),
        ({"beyond": -RULES.z_leave + 0.01}, False),
        ({"beyond": -RULES.z_leave - 0.01}, True),
    ],
)
def test_a_task_is_added_only_if_its_update_does_more_than_a_shorter_one_and_keeps_the_metric(fields, joins):
    selection, accepted = decided(ALONE, [WITH_B], {"with.b": compared(-20, **fields)}, 4, RULES)
    assert (accepted == WITH_B, selection.sources == ("a", "b")) == (joins, joins)
    assert decided(PAIR, [OWN], {"own": compared(-20, **fields)}, 4, RULES)[1] == OWN


def test_a_candidate_that_is_no_better_than_the_control_waits_as_one_that_is_no_better_than_the_model():
    """Otherwise it would be the best one in every round, and the others would have no trials."""
    for fields in ({"beyond": 0.5}, {"lowers_metric": True}):
        selection, _ = decided(ALONE, [WITH_B, WITH_C], {"with.b": compared(-20, **fields)}, 2, RULES)
        assert (selection.failures, selection.next_round) == ({"with.b": 1}, {"with.b": 4})
    selection, _ = decided(ALONE, [WITH_B], {"with.b": compared(-20, beyond=-1.0)}, 2, RULES)
    assert selection.failures == {"with.b": 0}
    assert selection.scores["with.b"] == pytest.approx(-1, abs=0.01)


def test_leaving_needs_the_uncorrected_margin_and_a_gain():
    for margin, gain, leaves in [(1.001, 0.021, True), (0.999, 0.5, False), (50, 0.019, False)]:
        result = {"own": compared(-RULES.z_leave * margin, gain=gain)}
        selection, accepted = decided(PAIR, [OWN], result, 4, RULES)
        assert (accepted == OWN, selection.sources == ("a",)) == (leaves, leaves)
    swap = Candidate("with.c", ("a", "c"))  # neither fewer nor more: the margin of joining
    assert decided(PAIR, [swap], {"with.c": compared(-RULES.z_leave - 0.1)}, 4, RULES)[1] is None


def test_the_largest_improvement_is_accepted_and_of_equal_ones_the_first_by_name():
    result = {"with.b": compared(-20), "with.c": compared(-20.5), "with.d": compared(-5)}
    everything = [WITH_B, WITH_C, Candidate("with.d", ("a", "d"))]
    assert decided(ALONE, everything, result, 3, RULES)[1] == WITH_C
    result["with.b"] = result["with.c"]
    assert decided(ALONE, everything[::-1], result, 3, RULES)[1] == WITH_B


def test_an_acceptance_forgets_trials_against_the_old_sources():
    old = Selection("a", ("a",), failures={"with.c": 2}, next_round={"with.c": 9}, scores={"with.c": 1.0})
    selection, _ = decided(old, [WITH_B, WITH_C], {"with.b": compared(-9), "with.c": compared(2)}, 3, RULES)
    assert selection == Selection("a", ("a", "b"))


def test_what_was_not_offered_is_not_accepted():
    selection, accepted = decided(ALONE, [WITH_C], {"with.b": compared(-50)}, 3, RULES)
    assert (selection.sources, accepted) == (("a",), None)


def test_a_difference_of_exactly_0_without_an_error_is_no_improvement():
    same = Comparison(0.5, 0.0, 0.0, 40)
    assert (same.z, same.gain) == (0.0, 0.0)
    selection, accepted = decided(ALONE, [WITH_B], {"with.b": same}, 2, RULES)
    assert accepted is None
    assert selection.failures == {"with.b": 1}


def test_an_error_of_0_is_certain_but_the_gain_still_counts():
    beyond = Comparison(0.9, -0.1, 0.0, 40)
    sure = Comparison(0.9, -0.1, 0.0, 40, beyond_control=beyond)
    assert (sure.z, sure.gain) == (-math.inf, pytest.approx(0.1))
    assert decided(ALONE, [WITH_B], {"with.b": sure}, 2, RULES)[1] == WITH_B
    small = Comparison(0.99, -0.01, 0.0, 40)
    selection, accepted = decided(ALONE, [WITH_B], {"with.b": small}, 2, RULES)
    assert (accepted, selection.scores) == (None, {"with.b": -1e9})


def test_a_loss_of_0_cannot_be_improved():
    assert Comparison(0.0, 0.0, 0.0, 9).gain == 0.0
    assert decided(ALONE, [WITH_B], {"with.b": Comparison(-1.0, -1.0, 0.1, 9)}, 2, RULES)[1] is None


@pytest.mark.parametrize(
    ("result", "failures"),
    [
        ({}, {}),
        ({"own": compared(50)}, {"own": 1}),
        ({"own": Comparison(0.5, 0.0, 0.0, 30)}, {"own": 1}),
        ({"own": compared(0.9 - RULES.z_leave)}, {"own": 0}),
        ({"own": DIVERGED}, {"own": 1}),
    ],
    ids=["nobody compared", "worse", "equal", "not significant", "diverged"],
)
def test_a_task_keeps_its_sources_unless_others_are_better(result, failures):
    selection, accepted = decided(PAIR, [OWN], result, 2, RULES)
    assert (selection.sources, accepted) == (("a", "b"), None)
    assert selection.failures == failures


# Sources of all tasks, and saved values.


def test_an_auxiliary_task_takes_the_updates_of_those_that_take_its_own():
    chosen = {"a": ("a", "d"), "b": ("b",), "c": ("a", "c", "d")}
    assert sources_of(chosen, TASKS) == {**chosen, "d": ("a", "c", "d")}
    assert sources_of({"b": ("b",)}, ("a", "b")) == {"a": ("a",), "b": ("b",)}


@pytest.mark.parametrize("z", [math.inf, -math.inf, 1e300, -1e300, 0.0])
def test_a_selection_is_restored_from_json_whatever_the_results_were(z):
    one = Comparison(1.0, math.copysign(0.1, z), 0.0, 20) if math.isinf(z) else Comparison(1.0, z, 1.0, 10**9)
    selection, _ = decided(ALONE, [WITH_B, WITH_C], {"with.b": one, "with.c": DIVERGED}, 3, SelectionRules(min_gain=2))
    text = json.dumps(selection.to_json(), allow_nan=False)
    assert Selection.of_json("a", json.loads(text)) == selection
    assert abs(selection.scores["with.b"]) <= 1e9
    assert json.loads(json.dumps(PAIR.to_json())) == PAIR.to_json()
    assert Selection.of_json("a", PAIR.to_json()) == PAIR


def test_after_many_failures_numbers_stay_small():
    selection = Selection("a", ("a",), failures={"with.b": 5000})
    selection, _ = decided(selection, [WITH_B], {"with.b": compared(1)}, 7, RULES)
    assert selection.next_round == {"with.b": 15}


def test_what_a_task_has_taken_is_told_by_rounds_including_the_one_before_an_acceptance():
    def state(round_, deltas, **sources):
        return {
            "round": round_,
            "deltas": deltas,
            "selections": {task: Selection(task, tuple(one)).to_json() for task, one in sources.items()},
        }

    states = [
        state(1, ["a", "b", "c", "d"], a="ab", b="b", c="c"),
        state(2, ["a", "b", "c", "d"], a="a", b="b", c="cd"),
        state(3, ["a", "b", "c"], a="a", b="ab", c="cd"),
        state(3, ["a", "b", "c"], a="a", b="ab", c="cd"),  # a round that failed
        state(5, ["a", "b", "c", "d"], a="a", b="ab", c="cd"),
        state(5, ["a", "b", "c", "d"], a="ac", b="b", c="c"),  # the evaluation of the final model
    ]
    assert taken(states, TASKS) == {
        "a": {"b": [1], "c": [5]},
        "b": {"a": [2, 3, 5]},
        "c": {"d": [1, 2, 5]},
        "d": {"c": [2, 5]},
    }
    assert taken(states[:1], TASKS) == {"a": {"b": [1]}}
    assert taken([], TASKS) == {}
