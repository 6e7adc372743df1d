"""Runs in which all candidates are exactly as good as the task's model: how often any of them is accepted."""

from __future__ import annotations

import random

import pytest

from fedmtl_server.sharing.source_selection import Comparison, Selection, SelectionRules, candidates, decided

TASKS = ("a", "b", "c", "d")
NUM_RUNS, NUM_ROUNDS, ROWS = 400, 8, 1000
BEYOND = Comparison(0.7, -1.0, 0.01, ROWS)
"""A control that is never as good."""


def accepts(rng: random.Random, rules: SelectionRules) -> bool:
    """Whether a run accepts a candidate for any task, if all differences are chance alone."""
    for task in TASKS:
        selection = Selection(task, (task,))
        for round_ in range(2, NUM_ROUNDS + 2):  # the first round has no variants, the evaluation at the end has some
            offered = candidates(selection, TASKS, TASKS, {}, round_, rules)
            compared = {}
            for one in offered:
                difference = rng.gauss(0.0, 0.01)
                compared[one.name] = Comparison(0.7 + difference, difference, 0.01, ROWS, beyond_control=BEYOND)
            selection, accepted = decided(selection, offered, compared, round_, rules)
            if accepted is not None:
                return True
    return False


def share_of_accepting_runs(rules: SelectionRules) -> float:
    rng = random.Random(20)
    return sum(accepts(rng, rules) for _ in range(NUM_RUNS)) / NUM_RUNS


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_a_run_accepts_a_candidate_that_is_no_better_at_most_at_the_error_rate(rate):
    num_trials = 2 * len(TASKS) * NUM_ROUNDS
    share = share_of_accepting_runs(SelectionRules(2, rate, 0.0, num_trials))
    assert 0 < share <= rate


def test_without_the_correction_for_several_trials_most_runs_would():
    assert share_of_accepting_runs(SelectionRules(2, 0.05, 0.0, num_trials=1)) > 0.5
