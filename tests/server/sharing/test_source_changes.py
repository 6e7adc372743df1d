"""Changes of the tasks' sources, as functions of the saved states."""

from __future__ import annotations

from fedmtl_server.sharing.source_changes import SourceChange, SourceState, source_changes

TASKS = ("a", "b", "c", "texts")


def saved(trials=(), **sources):
    """The state of a stage with these tasks' sources, as a report has it."""
    return {"selections": {task: {"sources": list(one), "is_trial": task in trials} for task, one in sources.items()}}


def state(trials=(), **sources):
    return SourceState.of(saved(trials, **sources), TASKS)


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


def test_a_trial_begins_goes_on_and_is_confirmed_or_reverted():
    own = {"a": ("a",), "b": ("b",), "c": ("c",)}
    start, tried = state(**own), state(["a"], **own | {"a": ("a", "b")})
    assert source_changes(start, tried) == [SourceChange("a", "began", ("a",), ("a", "b"))]
    assert source_changes(tried, tried) == []  # nobody compared it
    kept = state(**own | {"a": ("a", "b")})
    assert source_changes(tried, kept) == [SourceChange("a", "confirmed", ("a", "b"), ("a", "b"))]
    assert source_changes(tried, start) == [SourceChange("a", "reverted", ("a", "b"), ("a",))]
    more = state(**own | {"a": ("a", "b", "c")})
    assert source_changes(tried, more) == [  # confirmed, and improved in the same round
        SourceChange("a", "confirmed", ("a", "b"), ("a", "b")),
        SourceChange("a", "accepted", ("a", "b"), ("a", "b", "c")),
    ]


def test_a_trial_is_decided_by_the_tasks_own_updates_and_any_other_change_by_the_chosen_candidate():
    def decided_by(kind):
        change = SourceChange("a", kind, ("a",), ("a", "b"))
        offered = [("own", False), ("with.b", True), ("with.c", False)]
        return [name for name, chosen in offered if change.is_decided_by(name, is_chosen=chosen)]

    assert {kind: decided_by(kind) for kind in ("began", "confirmed", "reverted", "accepted", "followed")} == {
        "began": [],
        "confirmed": ["own"],
        "reverted": ["own"],
        "accepted": ["with.b"],
        "followed": [],
    }
