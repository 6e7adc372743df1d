"""The schedule's section: how its rounds and those of the run agree, and what is refused."""

from __future__ import annotations

import re
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core import config as configuration
from fedmtl_core.config import ScheduleEntry, contradictions, validated
from fedmtl_core.config.schedule_rounds import rate_schedule_in
from fedmtl_core.errors import ConfigError

TASKS = {"sst2": {}, "qqp": {}}
ENTRY = {"after_round": 1, "layers": {"0-1": "task"}}


def loaded(*entries, training=None, **sections):
    sharing = sections.pop("sharing", {})
    values = {"tasks": TASKS, "sharing": {"schedule": list(entries), **sharing}, **sections}
    return validated(values | ({"training": training} if training else {}), "the file")


@pytest.mark.parametrize(
    ("entries", "training", "total"),
    [
        ([ENTRY], {}, 10),  # the default of training.num_rounds
        ([ENTRY], {"num_rounds": 4}, 4),
        ([ENTRY | {"num_rounds": 3}], {}, 4),
        ([ENTRY | {"num_rounds": 3}], {"num_rounds": 4}, 4),
        ([ENTRY | {"num_rounds": 2}, {"after_round": 3, "layers": {0: "shared"}, "num_rounds": 4}], {}, 7),
    ],
)
def test_the_rounds_of_the_run_follow_from_the_last_entry_if_it_has_some(entries, training, total, tmp_path):
    config = loaded(*entries, training=training)
    assert config.training.num_rounds == total
    assert config.plan("sst2").num_rounds == total
    path = tmp_path / "config.yaml"  # as a run's folder has it, with all defaults
    path.write_text(configuration.dump(config))
    again = configuration.load(path)
    assert contradictions(config, again) == []
    assert again.training.num_rounds == total


@given(
    st.lists(st.booleans(), min_size=1, max_size=8),
    st.lists(st.integers(1, 3), min_size=8, max_size=8),
    st.integers(1, 3),
)
def test_every_round_is_in_one_learning_rate_schedule_and_each_ends_where_the_next_begins(restarts, gaps, left):
    ends = list(accumulate(gaps[: len(restarts)]))
    entries = [
        ScheduleEntry(after_round=end, layers={"0": "task"}, restart_schedule=restart)
        for end, restart in zip(ends, restarts, strict=True)
    ]
    total = ends[-1] + left
    expected, first = [], 1
    for last in [*(end for end, restart in zip(ends, restarts, strict=True) if restart), total]:
        expected += [(first, last - first + 1)] * (last - first + 1)
        first = last + 1
    assert [rate_schedule_in(entries, round_, total) for round_ in range(1, total + 1)] == expected


def test_the_command_line_changes_an_entrys_rounds(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("tasks: {sst2: {}, qqp: {}}\nsharing:\n  schedule:\n  - {after_round: 1, layers: {0-1: task}}\n")
    entries = "[{after_round: 2, layers: {0: task}, num_rounds: 2}]"
    assert configuration.load(path, [f"sharing.schedule={entries}"]).training.num_rounds == 4
    with pytest.raises(ConfigError, match=r"2 rounds after round 2 make 4 rounds, but `training\.num_rounds` is 5"):
        configuration.load(path, [f"sharing.schedule={entries}", "training.num_rounds=5"])


def test_another_schedule_contradicts_a_runs():
    one, other = loaded(ENTRY), loaded(ENTRY | {"restart_schedule": True})
    (problem,) = contradictions(one, other)
    assert problem.startswith("sharing.schedule: the run has [")


SECOND = {"after_round": 2, "layers": {"0": "shared"}}


@pytest.mark.parametrize(
    ("entries", "sections", "expected"),
    [
        (
            [ENTRY | {"num_rounds": 3}],
            {"training": {"num_rounds": 5}},
            "sharing.schedule[0].num_rounds: 3 rounds after round 1 make 4 rounds, but `training.num_rounds` is 5; "
            "leave out one of the two",
        ),
        (
            [ENTRY | {"num_rounds": 2}, SECOND],
            {},
            "schedule[0].num_rounds: expected 1, since the next entry is due after round 2, got 2",
        ),
        ([SECOND], {"training": {"num_rounds": 2}}, "expected a round before the last one, which is round 2"),
        ([SECOND, SECOND], {}, "sharing.schedule[1].after_round: expected a round after 2, that of the entry before"),
        ([SECOND, ENTRY], {}, "sharing.schedule[1].after_round: expected a round after 2"),
        ([ENTRY | {"layers": {"0": "local"}}], {}, "schedule[0].layers.0: a part can't become `local` during a run"),
        (
            [ENTRY],
            {"sharing": {"layers": {"1": "local"}}},
            "schedule[0].layers.0-1: layer 1 is `local` in `layers.1`, and the server has no copy of it",
        ),
        ([ENTRY | {"layers": {"x": "task"}}], {}, "sharing.schedule[0].layers: expected a layer's number, a range"),
        ([ENTRY | {"layers": {"0": "tsk"}}], {}, "sharing.schedule[0].layers.0: expected one of shared, all, group"),
        ([ENTRY | {"layers": {"0": "group"}}], {}, "schedule[0].layers.0: `group` needs groups in `sharing.groups`"),
        ([ENTRY | {"layers": {"0-1": "task", "1": "shared"}}], {}, "schedule[0].layers: layer 1 occurs twice"),
        ([ENTRY | {"layers": {}}], {}, "sharing.schedule[0].layers: dictionary should have at least 1 item"),
        ([{"after_round": 1}], {}, "sharing.schedule[0].layers: required, but not given"),
        ([ENTRY | {"learning_rates": 1}], {}, "sharing.schedule[0].learning_rates: unknown key; did you mean 'learni"),
        ([ENTRY | {"learning_rate": 0}], {}, "sharing.schedule[0].learning_rate: input should be greater than 0"),
        (
            [ENTRY],
            {"rounds": {"mode": "async"}},
            "sharing.schedule: needs `rounds.mode: sync`, got 'async': layers can't be regrouped",
        ),
        (
            [ENTRY],
            {"training": {"control_variates": True, "optimizer": "sgd"}},
            "training.control_variates: needs no `sharing.schedule`: control variates belong to components that don't",
        ),
        (
            [ENTRY],
            {"sharing": {"adaptive": {"policy": "cosine", "layers": [1]}}},
            "sharing.adaptive.layers: layer 1 is in `schedule`, which alone moves it",
        ),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_in_words(entries, sections, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        loaded(*entries, **sections)


def test_a_schedule_goes_with_a_rule_and_a_policy():
    loaded(ENTRY, aggregation={"rule": "mine:Rule"})
    loaded(ENTRY, sharing={"adaptive": {"policy": "cosine", "layers": ["pooler"]}})


@pytest.mark.parametrize("policy", [None, "cosine"])
def test_options_are_for_a_policy_of_ones_own(policy):
    section = {"options": {"margin": 0.1}} | ({} if policy is None else {"policy": policy})
    with pytest.raises(ConfigError, match=r"sharing\.adaptive: `options` are for a class of your own in `policy`, got"):
        loaded(sharing={"adaptive": section})
