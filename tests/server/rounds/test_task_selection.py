"""Which task each client of several has, in numbers that can be checked by hand."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.errors import ConfigError
from fedmtl_server.rounds.task_selection import (
    HighestLoss,
    LargestDeficit,
    RoundRobin,
    SelectionRound,
    TaskLoss,
    TaskSelection,
    choose_tasks,
    make_selection,
)

GLUE = ("cola", "qqp", "sst2")


def select(selection, round_=1, clients=None, **facts):
    return dict(selection.select(SelectionRound(round_, clients or {}, **facts)))


class TestRoundRobin:
    def test_each_client_has_one_task_after_the_other_and_each_begins_with_another(self):
        clients = {"x": ("qqp", "sst2"), "y": ("sst2", "qqp"), "z": ("qqp", "sst2")}
        by_round = [list(select(RoundRobin(), round_, clients).values()) for round_ in (1, 2, 3)]
        assert by_round == [["qqp", "sst2", "qqp"], ["sst2", "qqp", "sst2"], ["qqp", "sst2", "qqp"]]

    def test_clients_of_other_tasks_are_counted_apart(self):
        clients = {"x": ("cola", "qqp"), "y": GLUE, "z": ("cola", "qqp")}
        assert select(RoundRobin(), 1, clients) == {"x": "cola", "y": "cola", "z": "qqp"}
        assert select(RoundRobin(), 3, clients) == {"x": "cola", "y": "sst2", "z": "qqp"}

    @given(st.integers(1, 10_000), st.integers(1, 9), st.integers(2, 5))
    def test_in_as_many_rounds_as_it_has_tasks_a_client_has_each_and_no_task_has_many_more_than_another(
        self, round_, num_clients, num_tasks
    ):
        tasks = tuple("vwxyz"[:num_tasks])
        clients = {f"c{n}": tasks for n in range(num_clients)}
        rounds = [select(RoundRobin(), round_ + later, clients) for later in range(num_tasks)]
        for client_id in clients:
            assert {one[client_id] for one in rounds} == set(tasks)
        for one in rounds:
            counts = Counter(dict.fromkeys(tasks, 0)) + Counter(one.values())
            assert max(counts.values()) - min(Counter(one.values())[task] for task in tasks) <= 1


class TestHighestLoss:
    def test_the_task_whose_loss_has_fallen_least_relative_to_its_first_is_taken(self):
        """0.6 of 0.7 is more of the first than 2 of 3, though the smaller number."""
        losses = {"sst2": TaskLoss(0.7, 0.6), "qqp": TaskLoss(3.0, 2.0), "cola": TaskLoss(0.5, 0.1)}
        clients = {"x": ("qqp", "sst2"), "y": ("cola", "qqp")}
        assert select(HighestLoss(), 5, clients, losses=losses) == {"x": "sst2", "y": "qqp"}

    def test_a_task_that_was_not_measured_comes_first(self):
        losses = {"sst2": TaskLoss(0.7, 0.9)}
        assert select(HighestLoss(), 2, {"x": ("qqp", "sst2")}, losses=losses) == {"x": "qqp"}

    def test_among_equals_clients_take_turns(self):
        clients = {"x": ("qqp", "sst2"), "y": ("qqp", "sst2")}
        assert select(HighestLoss(), 1, clients) == {"x": "qqp", "y": "sst2"}
        assert select(HighestLoss(), 2, clients) == {"x": "sst2", "y": "qqp"}

    def test_a_first_loss_of_nothing_divides_by_nothing(self):
        assert TaskLoss(0.0, 0.5).relative == 1.0


class TestLargestDeficit:
    def test_clients_go_where_most_are_lacking_and_then_where_fewest_are(self):
        """qqp lacks 2, sst2 1 less the client that has nothing else: x and y go to qqp, z to the task of fewer."""
        facts = {"others": {"s": "sst2"}, "min_clients": {"qqp": 2, "sst2": 1, "cola": 0}}
        clients = {"x": ("qqp", "sst2"), "y": ("qqp", "sst2"), "z": ("cola", "sst2")}
        assert select(LargestDeficit(), 1, clients, **facts) == {"x": "qqp", "y": "qqp", "z": "cola"}


class All(TaskSelection):
    """Wants one task for everybody; told where a test's own file would be."""

    task = "sst2"

    def select(self, round_):
        return dict.fromkeys(round_.clients, self.task)


def choose(selection, offers, needs=None, round_=1, seed=0):
    return choose_tasks(selection, offers, round_, needs or {}, {}, seed)


class TestChoice:
    def test_quorums_come_before_what_is_wanted(self):
        offers = {"w": ("sst2", "qqp"), "x": ("qqp", "sst2"), "y": ("sst2",), "z": ("sst2", "qqp")}
        assert choose(All(), offers, {"sst2": 1}) == dict.fromkeys("wxyz", "sst2")
        tasks = choose(All(), offers, {"sst2": 1, "qqp": 2})
        assert Counter(tasks.values()) == {"sst2": 2, "qqp": 2}
        assert tasks["y"] == "sst2"

    def test_who_is_moved_for_a_quorum_is_drawn_anew_each_round_and_the_same_when_it_is_planned_again(self):
        offers = {f"c{n}": ("qqp", "sst2") for n in range(8)}
        moved = []
        for round_ in range(1, 21):
            tasks = choose(All(), offers, {"qqp": 1}, round_)
            assert tasks == choose(All(), dict(reversed(offers.items())), {"qqp": 1}, round_)
            (one,) = [client_id for client_id, task in tasks.items() if task == "qqp"]
            moved.append(one)
        assert len(set(moved)) > 3
        other_seed = [choose(All(), offers, {"qqp": 1}, round_, seed=1) for round_ in range(1, 21)]
        assert other_seed != [choose(All(), offers, {"qqp": 1}, round_) for round_ in range(1, 21)]

    def test_a_selection_is_not_asked_where_nobody_has_a_choice(self):
        class Never(TaskSelection):
            def select(self, round_):
                raise AssertionError("asked")

        assert choose(Never(), {"y": ("qqp",), "x": ("sst2",)}) == {"x": "sst2", "y": "qqp"}

    @pytest.mark.parametrize(("answer", "got"), [({}, "nothing"), ({"x": "stsb"}, "'stsb'"), ({"x": 7}, "7")])
    def test_an_answer_that_is_none_of_the_clients_tasks_is_told(self, answer, got):
        class Odd(TaskSelection):
            def select(self, round_):
                return answer

        told = f"rounds.task_selection: expected one of sst2, qqp for client 'x', got {got}"
        with pytest.raises(ConfigError, match=f"^{told}$"):
            choose(Odd(), {"x": ("sst2", "qqp")})


MINE = """
from fedmtl_server.rounds.task_selection import TaskSelection


class LastNamed(TaskSelection):
    def select(self, round_):
        return {client_id: tasks[-1] for client_id, tasks in round_.clients.items()}


class Broken(TaskSelection):
    def select(self, round_):
        return {}["nothing"]


class Mute(TaskSelection):
    def select(self, round_):
        pass


class Nothing:
    pass

class OneByOne(TaskSelection):
    def select(self, round_):
        for client_id, tasks in round_.clients.items():
            yield client_id, tasks[round_.losses[client_id]]

class Unreadable(OneByOne):
    def select(self, round_):
        for client_id in round_.clients:
            yield client_id, int(client_id)
"""


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    (tmp_path / "selections_of_mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)


def test_a_class_of_ones_own_selects(own_file):
    selection = make_selection("selections_of_mine:LastNamed")
    assert choose(selection, {"x": ("sst2", "qqp"), "y": ("qqp", "sst2")}) == {"x": "qqp", "y": "sst2"}


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        (
            "selections_of_mine:Nothing",
            "expected a subclass of fedmtl_server.rounds.task_selection.TaskSelection; .* is the ",
        ),
        ("selections_of_mine:Other", "has no 'Other'; it has LastNamed, Broken, Mute, OneByOne, Unreadable"),
        ("selections_of_nobody:Other", "there is no module 'selections_of_nobody'"),
    ],
)
def test_a_class_that_is_none_is_told_with_its_setting(own_file, reference, told):
    with pytest.raises(ConfigError, match=f"^rounds.task_selection: .*{told}"):
        make_selection(reference)


def test_what_an_own_class_raises_is_told_with_its_place(own_file):
    selection = make_selection("selections_of_mine:Broken")
    with pytest.raises(
        ConfigError, match=r"^rounds.task_selection: selections_of_mine:Broken raised KeyError.*line 12"
    ):
        choose(selection, {"x": ("sst2", "qqp")})


@pytest.mark.parametrize(("name", "told"), [("OneByOne", "KeyError: 'x'"), ("Unreadable", "ValueError: invalid")])
def test_what_an_own_class_raises_while_its_answer_is_read_is_told_with_its_place(own_file, name, told):
    selection = make_selection(f"selections_of_mine:{name}")
    with pytest.raises(ConfigError, match=rf"^rounds\.task_selection: {name} raised {told}.*_of_mine\.py, line "):
        choose(selection, {"x": ("sst2", "qqp")})


def test_an_own_class_that_answers_nothing_is_told_what_was_expected(own_file):
    selection = make_selection("selections_of_mine:Mute")
    with pytest.raises(ConfigError, match=r"^rounds\.task_selection: expected a task by client id, got None"):
        choose(selection, {"x": ("sst2", "qqp")})


def test_the_class_that_the_documentation_shows_gives_each_client_the_task_that_the_fewest_have():
    page = (Path(__file__).parents[3] / "docs" / "task-selection.md").read_text(encoding="utf-8")
    (code,) = [
        block for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "class FewestFirst" in block
    ]
    found: dict[str, type[TaskSelection]] = {}
    exec(code, found)
    facts = {"others": {"y": "sst2", "z": "sst2"}}
    assert select(found["FewestFirst"](), 1, {"x": ("sst2", "qqp")}, **facts) == {"x": "qqp"}
