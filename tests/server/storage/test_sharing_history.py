"""The sharing of a run as its history has it: rounds that count, and the reasons of what wasn't accepted."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fedmtl_server.sharing.selection_rules import SelectionRules
from fedmtl_server.storage.records import RoundRecord
from fedmtl_server.storage.sharing_history import num_encoders, sharing_history

RULES = SelectionRules(trials=3, error_rate=0.05, min_gain=0.02, num_trials=50)  # 3.09 standard errors
TASKS = ("a", "b", "c")


def variant(name, difference=None, error=0.01, *, loss=1.0, diverged=0, chosen=False, lowered=()):
    return {
        "name": name,
        "num_clients": 1,
        "num_examples": 0 if difference is None else 100,
        "num_diverged": diverged,
        "loss": None if difference is None else loss + difference,
        "loss_difference": difference,
        "standard_error": None if difference is None else error,
        "chosen": chosen,
        "metrics": {},
        "metric_reports": {},
        "lowered_metrics": lowered,
        "clients": clients_of(difference, error, loss, diverged),
    }


def clients_of(difference, error, loss, diverged):
    """One client with these figures of 100 rows; None if it diverged."""
    if difference is None:
        return {}
    deviations = None if error is None else error**2 * 100 * 99
    paired = {"num_examples": 100, "loss": loss, "difference": difference, "squared_deviations": deviations}
    return {"client": None if diverged else paired}


def record(round_, *variants, sources=("a",), outcome="committed", purpose="train", **facts):
    """A round in which task a tried variants, and has these sources afterwards."""
    own = {task: [task] for task in TASKS} | {"a": list(sources)}
    selections = {task: {"sources": one} for task, one in own.items()}
    tasks = [{"task": task, "variants": variants if task == "a" else []} for task in TASKS]
    report = {"tasks": tasks, "stages": {"sources": {"selections": selections}}} | facts
    return RoundRecord("run", round_, purpose, outcome, 0, 0, {}, report)


@pytest.mark.parametrize(
    ("tried", "reason"),
    [
        (variant("with.b", -0.5, diverged=1), "loss not finite"),
        (variant("with.b"), "not evaluated"),
        (variant("with.b", -0.5, error=None), "no standard error"),
        (variant("with.b", 0.0), "not better"),
        (variant("with.b", -0.03), "not significant"),  # 3 standard errors
        (variant("own", -0.03), "within the margins"),  # enough for fewer sources
        (variant("without.b", -0.03), "within the margins"),
        (variant("with.b", -0.019, error=0.001), "gain too small"),
        (variant("own", -0.05, lowered=["accuracy"]), "within the margins"),
        (variant("with.b", -0.05), "within the margins"),  # as another one that was better, for example
    ],
)
def test_the_reason_of_a_rejection_follows_from_the_margins(tried, reason):
    (one,) = sharing_history([record(1, tried)], TASKS, {"a": "accuracy"})
    (rejected,) = one.rejected()
    assert one.reason(rejected, RULES) == reason


@pytest.mark.parametrize(
    ("control", "fields", "reason"),
    [
        (variant("shorter", -0.04), {}, "a shorter update is as good"),
        (variant("shorter", -0.02), {}, "a shorter update is as good"),  # 1.5 of both standard errors
        (variant("shorter", -0.01), {}, "within the margins"),
        (variant("shorter"), {}, "control not compared"),
        (variant("shorter", -0.01, diverged=1), {}, "control not compared"),
        (variant("shorter", 0.3), {"lowered": ["accuracy"]}, "main metric lower"),
        (variant("shorter", 0.3), {"lowered": ["f1"]}, "within the margins"),
    ],
)
def test_an_added_task_must_do_more_than_the_control(control, fields, reason):
    tried = variant("with.b", -0.05, **fields)
    (one,) = sharing_history([record(1, control, tried)], TASKS, {"a": "accuracy"})
    assert {trial.candidate: one.reason(trial, RULES) for trial in one.rejected()} == {
        "shorter": "control",
        "with.b": reason,
    }


def test_without_known_margins_only_the_sign_is_a_reason():
    (one,) = sharing_history([record(1, variant("with.b", -0.03), variant("with.c", 0.1))], TASKS)
    assert [one.reason(trial, None) for trial in one.rejected()] == ["within the margins", "not better"]


def test_a_candidate_beside_a_better_one_is_told_so():
    variants = [variant("with.b", -0.1), variant("with.c", -0.2, chosen=True)]
    (one,) = sharing_history([record(1, *variants, sources=("a", "c"))], TASKS)
    (rejected,) = one.rejected()
    assert (rejected.candidate, one.reason(rejected, RULES)) == ("with.b", "with c was better")
    (change,) = one.changes
    assert (change.change.after, change.trial.candidate) == (("a", "c"), "with.c")


def test_rounds_that_were_rolled_back_or_are_open_do_not_count():
    accepted = variant("with.b", -0.1, chosen=True)
    records = [
        RoundRecord("run", 0, "train", "committed", 0),
        record(1),
        record(2, accepted, sources=("a", "b"), outcome="rolled_back"),
        RoundRecord("run", 3, "train", "open", 0),
    ]
    (one,) = sharing_history(records, TASKS)
    assert (one.round, one.state.sources["a"]) == (1, ("a",))


def test_reports_of_versions_without_sources_have_their_moves_alone():
    moves = {"moved": {"1": [["a", "b", "c"]], "0": [["a", "b", "c"]]}, "sharing": {"0": [["a"], ["b", "c"]]}}
    moves["sharing"]["1"] = [["a"], ["b", "c"]]
    old = record(1, variant("own", -0.5), **moves)
    del old.report["stages"]
    (one,) = sharing_history([old], TASKS)
    assert (one.changes, one.trials) == ([], [])
    (move,) = one.moves
    assert (move.parts, move.before, move.after, move.cause) == (
        ["1", "0"],
        (("a", "b", "c"),),
        (("a",), ("b", "c")),
        "",
    )


def checkpoint(folder, round_, **tensors):
    (folder / "checkpoints").mkdir(exist_ok=True)
    named = {name.replace("__", "/"): torch.zeros(size) for name, size in tensors.items()}
    save_file(named, folder / "checkpoints" / f"round-{round_:04}.safetensors")


def test_encoders_are_counted_in_the_newest_checkpoint(tmp_path):
    assert num_encoders(tmp_path) is None
    checkpoint(tmp_path, 1, **{"encoder.x": (3, 2), "encoder.y": (4,), "heads.a.w": (9,)})
    assert num_encoders(tmp_path) == 1.0
    layers = {"encoder.x": (3, 2), "task:a__encoder.y": (4,), "group:b+c__encoder.y": (4,), "heads.a.w": (9,)}
    checkpoint(tmp_path, 2, **layers)
    assert num_encoders(tmp_path) == 1.4  # 6 + 4 + 4 of 10
    (tmp_path / "checkpoints" / "round-0003.safetensors").write_bytes(b"broken")
    assert num_encoders(tmp_path) is None
