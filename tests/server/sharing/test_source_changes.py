"""Changes of the tasks' sources, as functions of the saved states."""

from __future__ import annotations

from fedmtl_server.sharing.source_changes import SourceChange, SourceState, source_changes

TASKS = ("a", "b", "c", "texts")


def state(**sources):
    """The state after a round with these tasks' sources, from what a report has of it."""
    return SourceState.of({"selections": {task: {"sources": list(one)} for task, one in sources.items()}}, TASKS)


def test_before_the_first_update_each_task_takes_its_own():
    assert SourceState.of({}, TASKS) == SourceState.start(TASKS)
    assert SourceState.start(TASKS).sources == {task: (task,) for task in TASKS}


def test_tasks_without_trials_follow_those_that_take_their_updates():
    now = state(a=("a", "texts"), b=("b",), c=("c", "texts"))
    assert now.sources["texts"] == ("a", "c", "texts")
    assert now.auxiliary == ["texts"]
    assert source_changes(SourceState.start(TASKS), now) == [
        SourceChange("a", "accepted", ("a",), ("a", "texts")),
        SourceChange("c", "accepted", ("c",), ("c", "texts")),
        SourceChange("texts", "followed", ("texts",), ("a", "c", "texts")),
    ]


def test_only_other_sources_than_before_are_a_change():
    own = {"a": ("a",), "b": ("b",), "c": ("c",)}
    start, more, other = state(**own), state(**own | {"a": ("a", "b")}), state(**own | {"a": ("a", "c")})
    assert source_changes(start, start) == []
    assert source_changes(start, more) == [SourceChange("a", "accepted", ("a",), ("a", "b"))]
    assert source_changes(more, other) == [SourceChange("a", "accepted", ("a", "b"), ("a", "c"))]
    assert source_changes(other, start) == [SourceChange("a", "accepted", ("a", "c"), ("a",))]
