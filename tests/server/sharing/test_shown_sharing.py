"""What people can read of a run's sharing: in the log, from `runs show --sharing`, and in the picture."""

from __future__ import annotations

import json
import re

import pytest
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs
from typer.testing import CliRunner

from fedmtl_core.config import SharingConfig
from fedmtl_core.errors import UserError
from fedmtl_server.commands.runs import runs_app
from fedmtl_server.storage.rollback import clear_rolled_back
from fedmtl_server.storage.sharing_timeline import Cell, Via, sharing_timeline
from tests.server.sharing.test_shared_layers import layered_model
from tests.support import full_of, reports_of, serving, watching

OPENED, FINISHED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_FINISHED
VALIDATED = {"adaptive": {"policy": "validated"}}
TASKS = {"a": "sst2", "b": "cola", "c": "qqp"}
DIFFERENCES = {
    2: {("sst2", "with.cola"): -0.4, ("qqp", "with.sst2"): -0.3, ("cola", "with.qqp"): -0.01},
    3: {("qqp", "own"): -0.2, ("sst2", "with.qqp"): -0.001},  # too little, so it is tried again at once
    4: {("sst2", "with.qqp"): -0.25},
}
"""By round, the differences of the losses that clients report; 0.1 for all other variants."""


def evaluation(round_, task, name):
    """400 rows with a model's loss of 0.5, and a standard error of the difference of 0.02."""
    difference = DIFFERENCES.get(round_, {}).get((task, name), 0.1)
    return pb.VariantEvaluation(
        name=name,
        num_examples=400,
        loss=0.5 + difference,
        loss_difference=difference,
        squared_deviations=0.02**2 * 400 * 399,
    )


async def play(run_dir, section, *, num_rounds=3, tasks=None):
    """A run in which each client says of each variant what `DIFFERENCES` has; returns the log."""
    tasks = tasks or TASKS
    model = layered_model(*tasks.values(), rules=SharingConfig.model_validate(section).rules())
    with capture_logs() as logs:
        async with serving(run_dir, model, num_rounds=num_rounds, sections={"sharing": section}) as server:
            async with watching(server, **tasks) as clients:
                for round_ in range(1, num_rounds + 2):
                    for number, client in enumerate(clients.values(), 1):
                        await client.until(OPENED, round_)
                        header, data = await client.get_slice(round=round_)
                        said = [evaluation(round_, client.task, one.name) for one in header.variants]
                        fields = {"variants": said, "num_eval_examples": 400}
                        fields["received_metrics"] = {"accuracy": 0.5, "loss": 0.5}
                        if round_ > num_rounds:
                            fields |= {"kind": pb.UPDATE_KIND_METRICS, "components": [], "num_examples": 0}
                            data = {}
                        await client.push(client.update(header, full_of(data, number / round_), **fields))
                await clients["a"].until(FINISHED)
                await server.run_task
    return logs


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments):
        result = CliRunner().invoke(runs_app, ["show", *map(str, arguments)])
        if result.exception:
            raise result.exception
        return result.stdout

    return command


def cells(line):
    return re.split(r"\s{2,}", line.strip())


async def test_what_paired_losses_decided_is_told_in_words_in_the_log_and_in_the_picture(tmp_path, shown):
    run = tmp_path / "run"
    logs = await play(run, VALIDATED)

    text = shown(run, "--sharing")
    start = text.index("Changes of the sharing\n")
    lines = text[start:].split("\n\n")[0].splitlines()[1:]
    assert lines == [
        "round 2: sst2 takes cola's updates: calibrated loss -0.400 ± 0.020 on 400 rows (of 0.500)",
        "round 2: qqp takes sst2's updates: calibrated loss -0.300 ± 0.020 on 400 rows (of 0.500)",
        "round 3: qqp no longer takes sst2's updates: calibrated loss -0.200 ± 0.020 on 400 rows (of 0.500)",
        "round 4 (evaluation): sst2 takes qqp's updates: calibrated loss -0.250 ± 0.020 on 400 rows (of 0.500)",
    ]
    # 2 trials of 3 tasks in 3 rounds: a normal variable is above 2.77 with a probability of 0.05 / 18
    assert "lower by at least 0.02 of it and by 2.77 standard errors, or 1.64 with fewer sources" in text
    assert "encoders   3 (" in text

    rejected = {tuple(cells(line)[:2]): cells(line)[2:] for line in text.splitlines() if line.startswith(" ")}
    assert rejected["cola", "with qqp"][:2] == ["2-3", "+0.100 ± 0.020"]  # the last trial's numbers
    # 5 standard errors of 400 rows are as rare as 4.9 of a normal variable
    assert rejected["qqp", "with cola"][1:] == ["+0.100 ± 0.020", "+4.9", "-20.0%", "400", "not better"]
    assert rejected["qqp", "with sst2"][0] == "4"  # in round 2 it was accepted
    assert rejected["sst2", "own updates only"][0] == "3-4"
    after = [cells(line) for line in text[text.index("Sources after") :].splitlines()]
    assert [line[:2] for line in after if line[0] in TASKS.values()] == [
        ["sst2", "sst2, cola, qqp"],
        ["cola", "cola only"],
        ["qqp", "qqp only"],
    ]

    changed = [one for one in logs if one["event"] == "sources.changed"]
    assert [(one["progress"], one["task"], one["sources"]) for one in changed] == [
        ("Round 2/3", "sst2", ["sst2", "cola"]),
        ("Round 2/3", "qqp", ["sst2", "qqp"]),
        ("Round 3/3", "qqp", ["qqp"]),
        ("Final evaluation", "sst2", ["sst2", "cola", "qqp"]),
    ]
    facts = [(one["loss_difference"], round(one["standard_error"], 6), one["examples"]) for one in changed]
    assert facts == [(-0.4, 0.02, 400), (-0.3, 0.02, 400), (-0.2, 0.02, 400), (-0.25, 0.02, 400)]
    assert {one["log_level"] for one in changed} == {"info"}

    told = json.loads(shown(run, "--sharing", "--json"))["sharing"]
    assert [one["text"] for one in told["rounds"]] == [
        [line.partition(": ")[2] for line in lines if line.startswith(f"round {number}")] for number in (1, 2, 3, 4)
    ]
    assert told["num_encoders"] == 3.0
    assert told["rounds"][1]["sources"] == {"sst2": ["sst2", "cola"], "cola": ["cola"], "qqp": ["sst2", "qqp"]}
    reasons = {(one["task"], one["candidate"]): one["reason"] for one in told["rounds"][1]["not_accepted"]}
    assert (reasons["cola", "with.qqp"], reasons["qqp", "with.cola"]) == ("not significant", "not better")

    assert (run / "sharing.png").read_bytes().startswith(b"\x89PNG")
    clear_rolled_back(run, [4])  # the picture is about rounds that are no more
    assert not (run / "sharing.png").exists()


def timeline_of(run_dir, section):
    section = SharingConfig.model_validate(section)
    model = layered_model(*TASKS.values(), rules=section.rules())
    reports = reports_of(run_dir)
    config = type("Config", (), {"sharing": section})
    return sharing_timeline(config, model.parts, reports)


async def test_the_timeline_has_the_sources_after_each_round(tmp_path):
    await play(tmp_path, VALIDATED)
    timeline = timeline_of(tmp_path, VALIDATED)
    assert timeline.rounds == [0, 1, 2, 3, 4]
    ((parts, by_task),) = timeline.cells.items()
    assert parts == ("embeddings", "0", "1", "rest")

    def takes(*tasks):
        return Cell(frozenset(tasks), Via.UPDATES)

    alone, together = takes("sst2"), takes("sst2", "cola")
    assert by_task == {
        "sst2": (alone, alone, together, together, takes("sst2", "cola", "qqp")),
        "cola": (takes("cola"),) * 5,
        "qqp": (takes("qqp"), takes("qqp"), takes("sst2", "qqp"), takes("qqp"), takes("qqp")),
    }


async def test_a_schedules_changes_are_told_and_drawn_part_by_part(tmp_path, shown):
    layers = {"embeddings": "task", "0": "task", "1": "pairs"}
    section = {"groups": {"pairs": ["cola", "qqp"]}, "schedule": [{"after_round": 2, "layers": layers}]}
    await play(tmp_path / "run", section)
    text = shown(tmp_path / "run", "--sharing")
    assert "configured group pairs: cola, qqp; schedule with changes after round 2\n" in text
    assert "round 2: embeddings, layer 0: sst2+cola+qqp becomes sst2 | cola | qqp, by sharing.schedule[0]\n" in text
    assert "round 2: layer 1: sst2+cola+qqp becomes sst2 | cola+qqp, by sharing.schedule[0]\n" in text
    assert "Candidates" not in text
    assert text.endswith(
        "after round 4 (evaluation)\nembeddings, layer 0: sst2 | cola | qqp\nlayer 1: sst2 | cola+qqp\n"
    )
    # Embeddings of 8 numbers and layer 0 of 20 three times, layer 1 of 20 twice, the norm of 8 once, of 56 numbers.
    assert "encoders   2.36 (" in text
    moved = json.loads(shown(tmp_path / "run", "--sharing", "--json"))["sharing"]["rounds"][1]["moved"]
    assert moved[1] == {
        "parts": ["1"],
        "before": [["sst2", "cola", "qqp"]],
        "after": [["sst2"], ["cola", "qqp"]],
        "cause": "sharing.schedule[0]",
    }
    timeline = timeline_of(tmp_path / "run", section)
    assert timeline.rounds == [0, 1, 2, 3]
    assert list(timeline.cells) == [("embeddings", "0"), ("1",), ("rest",)]
    whole, pair = frozenset(TASKS.values()), frozenset(("cola", "qqp"))
    assert [one.tasks for one in timeline.cells["1",]["qqp"]] == [whole, whole, pair, pair]
    assert [one.tasks for one in timeline.cells["rest",]["qqp"]] == [whole] * 4
    assert {one.via for one in timeline.cells["1",]["qqp"]} == {Via.COPY}
    assert (tmp_path / "run" / "sharing.png").exists()


async def test_a_run_with_one_encoder_for_all_says_so_and_has_no_picture(tmp_path, shown):
    await play(tmp_path / "run", {}, num_rounds=1)
    text = shown(tmp_path / "run", "--sharing")
    assert "configured all tasks share one encoder, and each task has its own head\n" in text
    assert "policy     none\n" in text
    assert "encoders   1 (" in text
    assert text.endswith("The sharing has not changed in any round.\n")
    assert (tmp_path / "run" / "metrics.png").exists()
    assert not (tmp_path / "run" / "sharing.png").exists()
    assert timeline_of(tmp_path / "run", {}).is_plain


def test_layers_that_clients_keep_and_norms_of_their_own_have_rows_of_their_own():
    section = SharingConfig.model_validate({"layers": {"1": "local"}, "norms": "task"})
    model = layered_model(*TASKS.values(), rules=section.rules())
    timeline = sharing_timeline(type("Config", (), {"sharing": section}), model.parts, [])
    assert {parts: by_task["qqp"] for parts, by_task in timeline.cells.items()} == {
        ("embeddings", "0"): (Cell(frozenset(TASKS.values()), Via.COPY),),
        ("1",): (Cell(frozenset(("qqp",)), Via.CLIENTS),),
        ("norms",): (Cell(frozenset(("qqp",)), Via.COPY),),
    }
    assert not timeline.is_plain


async def test_a_round_and_the_sharing_are_not_shown_together(tmp_path, shown):
    await play(tmp_path / "run", {}, num_rounds=1)
    with pytest.raises(UserError, match="--sharing: expected no --round, because all rounds are shown, got --round 1"):
        shown(tmp_path / "run", "--sharing", "--round", 1)
