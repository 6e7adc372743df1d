"""`fedmtl-server runs`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from filelock import FileLock
from typer.testing import CliRunner

from fedmtl_core import config as configuration
from fedmtl_core.config import Config, EarlyStoppingConfig
from fedmtl_core.errors import StoreError, UserError
from fedmtl_server.commands import run_facts
from fedmtl_server.commands.runs import runs_app
from fedmtl_server.commands.updates_shown import updates_table
from fedmtl_server.rounds.metric_reports import MetricReport
from fedmtl_server.storage.history import History
from fedmtl_server.storage.records import RoundRecord, RunRecord, UpdateRecord

NOW_MS = time.time_ns() // 1_000_000
DAY_MS = 86_400_000
CONFIG = Config.model_validate({"tasks": {"sst2": {}, "qqp": {"metrics": ["f1", "accuracy"]}}})
COHORT = {"a": "sst2", "b": "qqp", "c": "qqp"}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "220")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def runs(*arguments: object) -> Result:
    return CliRunner().invoke(runs_app, [str(argument) for argument in arguments])


def shown(*arguments: object) -> str:
    result = runs(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """What a command that is wrong says; its exit code is 2, once the command line's `run` is around it."""
    result = runs(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def cells(line: str) -> list[str]:
    """A table's row."""
    return re.split(r"\s{2,}", line.strip())


def run_record(run_id: str, folder: Path, age_days: float = 0.0) -> RunRecord:
    created = NOW_MS - int(age_days * DAY_MS)
    config = CONFIG.model_dump(mode="json")
    return RunRecord(run_id, created, str(folder), "builtin:toy", ("sst2", "qqp"), 2, config)


def report(round_: int, **facts: Any) -> dict[str, Any]:
    """A round's report: a and b counted, c is missing."""
    part = {"num_examples": 10, "weight": 1.0}
    a, b = part | {"client_id": "a", "task": "sst2"}, part | {"client_id": "b", "task": "qqp", "num_examples": 30}
    accuracy = {"accuracy": round_ / 8}
    tasks = [
        {"task": "sst2", "num_updates": 1, "num_examples": 10, "encoder_share": 0.25, "received_metrics": accuracy},
        {"task": "qqp", "num_updates": 1, "num_examples": 30, "encoder_share": 0.75, "received_metrics": {"f1": 0.5}},
    ]
    return {
        "round": round_,
        "purpose": "train",
        "opened_at_unix_ms": 86_400_000 + round_ * 1000,
        "duration_s": 1.5,
        "aggregation_s": 0.25,
        "components": [
            {"scope": "shared", "num_tensors": 2, "contributions": [a | {"weight": 0.25}, b | {"weight": 0.75}]},
            {"scope": "task:sst2", "num_tensors": 1, "contributions": [a]},
            {"scope": "task:qqp", "num_tensors": 1, "contributions": [b]},
        ],
        "tasks": [task | {"trained_metrics": {"accuracy": 0.875}} for task in tasks],
        "missing_clients": ["c"],
        "refused": [{"client_id": "\x1b[31mred", "task": "qqp", "code": "ABORTED", "reason": "expected [1], got [2]"}],
        "num_refused": 1,
        "bytes_received": 2_000_000,
        "bytes_sent": 3_000,
        "unchanged_tasks": ["stsb"],
    } | facts


def end_round(history: History, run_id: str, round_: int, **facts: Any) -> None:
    opened = 86_400_000 + round_ * 1000
    record = RoundRecord(
        run_id, round_, "train", "committed", opened, opened + 1500, COHORT, report(round_, **facts), {"shared": "ab"}
    )
    received = {"a": {"accuracy": round_ / 8}, "b": {"f1": 0.5}}
    updates = [
        UpdateRecord(
            round_,
            client,
            COHORT[client],
            round_,
            f"{client}{round_}",
            "delta",
            n,
            400,
            metrics,
            {"loss": 1.0},
            "counted",
        )
        for (client, metrics), n in zip(received.items(), (10, 30), strict=True)
    ]
    late = UpdateRecord(
        round_, "\x1b[31mred", "qqp", 0, "late", "delta", 5, 0, {}, {}, "refused", "ABORTED", "expected [1], got [2]"
    )
    history.end_round(run_id, record, [*updates, late])


def add_run(history: History, run_id: str, folder: Path, rounds: int = 2, age_days: float = 0.0) -> None:
    """A run with so many rounds; at two it is finished."""
    history.begin_run(run_record(run_id, folder, age_days), {"shared": "00"})
    for round_ in range(1, rounds + 1):
        end_round(history, run_id, round_)
    if rounds == 2:
        history.finish_run(run_id, NOW_MS)


def make_run(runs_dir: Path, name: str, run_id: str, rounds: int = 2, age_days: float = 0.0) -> Path:
    """A run's folder, with its history."""
    folder = runs_dir / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "round-0001.safetensors").write_bytes(bytes(5_000_000))
    (folder / "run.json").write_text(json.dumps({"run_id": run_id}))
    with contextlib.closing(History.open(folder / "history.sqlite")) as history:
        add_run(history, run_id, folder, rounds, age_days)
    return folder


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """Three runs: finished, being served, and stopped, the newest last."""
    folder = tmp_path / "runs"
    make_run(folder, "first", "aaaa1111" * 4, age_days=9)
    make_run(folder, "second", "aaaa2222" * 4, rounds=1, age_days=5)
    make_run(folder, "third", "bbbb3333" * 4, rounds=0, age_days=1)
    (folder / "notes.txt").write_text("not a run")
    return folder


@pytest.fixture
def served(runs_dir: Path) -> Iterator[Path]:
    """The second run's folder, while a server has it."""
    with FileLock(runs_dir / "second" / "lock"):
        yield runs_dir / "second"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_are_listed_newest_first_with_state_rounds_and_last_metrics(runs_dir, served):
    lines = shown("list", "--runs-dir", runs_dir).splitlines()
    third, second, first = (line for line in lines if str(runs_dir) in line)
    for text in ("bbbb3333 ", "stopped", "sst2, qqp", "0/2", str(runs_dir / "third")):
        assert text in third
    for text in ("aaaa2222 ", "running", "1/2", "sst2 accuracy 0.125, qqp f1 0.500"):
        assert text in second
    for text in ("aaaa1111 ", "finished", "2/2", "sst2 accuracy 0.250, qqp f1 0.500"):
        assert text in first


def test_runs_are_listed_for_machines(runs_dir, served):
    listed = json.loads(shown("list", "--runs-dir", runs_dir, "--json"))
    assert [(run["run_id"][:8], run["state"], run["rounds_done"]) for run in listed] == [
        ("bbbb3333", "stopped", 0),
        ("aaaa2222", "running", 1),
        ("aaaa1111", "finished", 2),
    ]
    assert listed[2]["metrics"] == {  # round 2 measured the model of round 1
        "sst2": {"metric": "accuracy", "value": 0.25, "round": 1},
        "qqp": {"metric": "f1", "value": 0.5, "round": 1},
    }
    assert listed[0]["metrics"] == {}
    assert listed[0]["folder"] == str(runs_dir / "third")


def test_looking_changes_nothing(runs_dir, served):
    before = tree(runs_dir)
    shown("list", "--runs-dir", runs_dir)
    shown("show", "first", "--runs-dir", runs_dir)
    shown("show", "first", "--round", 1, "--runs-dir", runs_dir)
    for what in ("updates", "rounds", "metrics"):
        shown("export", "first", "--what", what, "--runs-dir", runs_dir)
    shown("prune", "--keep", 0, "--runs-dir", runs_dir)
    assert tree(runs_dir) == before


def test_no_runs_are_a_sentence(tmp_path):
    assert shown("list", "--runs-dir", tmp_path) == f"There are no runs in {tmp_path}.\n"
    assert json.loads(shown("list", "--runs-dir", tmp_path, "--json")) == []
    assert shown("prune", "--keep", 1, "--runs-dir", tmp_path) == f"There is nothing to remove in {tmp_path}.\n"
    assert refused("list", "--runs-dir", tmp_path / "nowhere").endswith(
        "nowhere: there is no such folder; say where the runs are with --runs-dir or --url"
    )


def test_a_broken_history_is_a_warning_and_hides_no_other(runs_dir):
    (runs_dir / "first" / "history.sqlite").write_text("broken" * 1000)
    result = runs("list", "--runs-dir", runs_dir, "--json")
    assert "warning: " in result.stderr
    assert "first/history.sqlite: can't read: file is not a database" in result.stderr
    assert len(json.loads(result.stdout)) == 2


def test_a_run_whose_history_cannot_be_read_is_told_so_and_not_that_there_is_none(runs_dir, tmp_path):
    (runs_dir / "first" / "history.sqlite").write_text("broken" * 1000)
    for name in ("first", runs_dir / "first"):
        error = runs("show", name, "--runs-dir", runs_dir).exception
        assert isinstance(error, StoreError)
        assert str(error).endswith("first/history.sqlite: can't read: file is not a database")
    shutil.rmtree(runs_dir / "second")
    shutil.rmtree(runs_dir / "third")
    text = refused("show", "aaaa", "--runs-dir", runs_dir)
    assert "there are no runs that can be read; " in text
    assert "file is not a database" in text


def test_a_run_whose_history_is_missing_is_told_so_and_nothing_is_made(runs_dir):
    """Its folder says that the history should be in it; of a run in another database it doesn't."""
    for name, url in (("lost", None), ("elsewhere", f"sqlite:///{runs_dir}/other.sqlite")):
        (runs_dir / name).mkdir()
        (runs_dir / name / "run.json").write_text('{"run_id": "cafe"}')
        config = CONFIG.model_copy(update={"store": CONFIG.store.model_copy(update={"url": url})})
        (runs_dir / name / "config.yaml").write_text(configuration.dump(config))
    result = runs("list", "--runs-dir", runs_dir)
    assert "lost/history.sqlite is missing: " in result.stderr
    assert "elsewhere" not in result.stderr
    for name in ("lost", runs_dir / "lost"):
        error = runs("show", name, "--runs-dir", runs_dir).exception
        assert isinstance(error, StoreError)
        assert "Restore the file" in str(error)
    assert not (runs_dir / "lost" / "history.sqlite").exists()


def test_a_run_that_ended_before_its_last_round_says_why(tmp_path):
    config = CONFIG.model_copy(update={"early_stopping": EarlyStoppingConfig(patience=3)})
    record = replace(run_record("aaaa", tmp_path / "early"), num_rounds=9, config=config.model_dump(mode="json"))
    (tmp_path / "early").mkdir()
    with contextlib.closing(History.open(tmp_path / "early" / "history.sqlite")) as history:
        history.begin_run(record, {"shared": "00"})
        end_round(history, "aaaa", 1)
        assert "early" not in shown("show", "aaaa", "--runs-dir", tmp_path).partition("folder")[0]
        history.end_round("aaaa", RoundRecord("aaaa", 2, "evaluate", "committed", 1, 2), [])
        history.finish_run("aaaa", NOW_MS)
    told = "finished, 1 of 9 rounds: early stopping after round 1, no improvement for 3 rounds"
    assert told in shown("show", "aaaa", "--runs-dir", tmp_path)
    assert "finished (early stopping)" in shown("list", "--runs-dir", tmp_path)
    assert json.loads(shown("list", "--runs-dir", tmp_path, "--json"))[0]["stopped_early"] is True


@pytest.mark.parametrize("name", ["aaaa1111" * 4, "aaaa1", "first", "FOLDER"])
def test_a_run_is_named_by_its_id_the_beginning_of_it_or_its_folder(runs_dir, name):
    name = str(runs_dir / "first") if name == "FOLDER" else name
    assert json.loads(shown("show", name, "--runs-dir", runs_dir, "--json"))["run"]["run_id"] == "aaaa1111" * 4


def test_a_runs_folder_is_enough_wherever_it_is(runs_dir, tmp_path):
    shown("show", runs_dir / "first", "--runs-dir", tmp_path / "nowhere")


def test_a_name_that_is_no_run_or_several_is_told_with_those_there_are(runs_dir, tmp_path):
    text = refused("show", "aaaa", "--runs-dir", runs_dir)
    assert text == f"RUN: 'aaaa' could be any of {'aaaa2222' * 4} (second), {'aaaa1111' * 4} (first)"
    text = refused("show", "cccc", "--runs-dir", runs_dir)
    assert text.startswith(f"RUN: no run 'cccc' in {runs_dir}; there are {'bbbb3333' * 4} (third), ")
    assert refused("show", "a", "--runs-dir", tmp_path) == f"RUN: no run 'a' in {tmp_path}; there are no runs"


def test_a_run_is_shown_with_its_rounds(runs_dir):
    text = shown("show", "first", "--runs-dir", runs_dir)
    for fact in ("aaaa1111" * 4, "finished, 2 of 2 rounds", "builtin:toy", "sst2, qqp", str(runs_dir / "first")):
        assert fact in text
    assert [cells(line) for line in text.splitlines()[8:10]] == [
        ["sst2", "qqp"],
        [*("round", "outcome", "opened", "seconds", "counted", "refused", "missing", "in", "out"), "accuracy", "f1"],
    ]
    (row,) = (line for line in text.splitlines() if "1970-01-02 00:00:02" in line)  # round 2, a day and 2 s after 1970
    facts = ["2", "committed", "1970-01-02 00:00:02", "1.5", "2 of 3", "1", "1", "2.0 MB", "3.0 kB"]
    assert cells(row) == [*facts, "0.250 25%", "0.500 75%"]


def test_a_run_with_adapters_says_so(tmp_path):
    """A reader would otherwise take the encoder's share for that of its own weights."""
    record = run_record("a" * 32, tmp_path / "run")
    config = record.config | {"model": record.config["model"] | {"adapters": {"rank": 4}}}
    assert run_facts.adapters_text(record) == ""
    assert run_facts.encoder_text(record) == "the encoder"
    adapted = replace(record, config=config)
    assert run_facts.adapters_text(adapted) == (
        "lora of rank 4, alpha 16, in all linear layers in the encoder's numbered layers; aggregation: freeze_a"
    )
    assert run_facts.encoder_text(adapted) == "the encoder's adapters"


def test_factors_that_are_trained_in_turn_are_shown_as_the_encoder_or_by_their_name(capsys):
    part = {"client_id": "a", "task": "sst2", "num_examples": 10, "weight": 0.25}
    components = [
        {"scope": scope, "num_tensors": 1, "contributions": [part]}
        for scope in ("factor_b:shared", "factor_a:task:sst2", "factor_a:group:pairs", "task:sst2")
    ]
    update = UpdateRecord(1, "a", "sst2", 1, "u", "delta", 10, 400, {}, {}, "counted")
    updates_table(report(1, components=components), [update]).show()
    lines = capsys.readouterr().out.splitlines()
    head, row = (cells(next(line for line in lines if first in line)) for first in ("client", "sst2"))
    shown_as = dict(zip(head, row, strict=True))
    assert shown_as["weight in the encoder"] == "0.250"
    assert shown_as["in its groups and heads"] == "A of sst2 0.250, A of pairs 0.250, sst2 0.250"


def test_nothing_is_cut_off_where_the_terminal_is_narrow(runs_dir, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    listed = shown("list", "--runs-dir", runs_dir)
    for name in ("first", "second", "third"):
        assert str(runs_dir / name) in listed
    assert "0.250 25%" in shown("show", "first", "--runs-dir", runs_dir)


def test_a_run_without_rounds_is_a_sentence(runs_dir):
    assert "No round has opened yet." in shown("show", "third", "--runs-dir", runs_dir)


def test_a_round_is_shown_whole(runs_dir):
    text = shown("show", "first", "--round", 1, "--runs-dir", runs_dir)
    for fact in ("1, to train", "committed", "a (sst2), b (qqp), c (qqp)", "2.0 MB in, 3.0 kB out", "head stsb"):
        assert fact in text
    assert "missing    c\n" in text
    (row,) = (line for line in text.splitlines() if cells(line)[0] == "b")
    assert cells(row) == ["b", "qqp", "counted", "30", "round 1", "0.750", "-", "qqp 1.000", "400 bytes"]
    (row,) = (line for line in text.splitlines() if "ABORTED" in line)
    assert cells(row) == ["\\x1b[31mred", "qqp", "ABORTED", "expected [1], got [2]"]  # no colours of a client's choice
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        (
            {"shared": 0.1234, "group:x": 3e-8},
            "shared: 12.34% off the clients' mean product; group:x: less than 0.01% off the clients' mean product",
        ),
        ({"shared": 0.0}, "shared: 0.00% off the clients' mean product"),
    ],
)
def test_the_error_of_adapters_is_shown_by_component(errors, text, tmp_path):
    folder = make_run(tmp_path, "run", "cccc4444" * 4, rounds=0)
    with contextlib.closing(History.open(folder / "history.sqlite")) as history:
        end_round(history, "cccc4444" * 4, 1, stages={"adapters": {"inexactness": errors}})
    lines = shown("show", "cccc", "--round", 1, "--runs-dir", tmp_path).splitlines()
    assert [cells(line)[1] for line in lines if line.startswith("adapters")] == [text]


def task_report(task: str, values: dict[str, float], **reports: tuple[bool, int, int, int]) -> dict[str, Any]:
    """A task's report, with what each metric was taken over."""
    taken = {name: asdict(MetricReport(*report)) for name, report in reports.items()}
    shared = {"task": task, "num_updates": 2, "num_examples": 10, "encoder_share": 0.5, "trained_metrics": {}}
    return shared | {"received_metrics": values, "received_reports": taken, "trained_reports": {}}


def test_an_undefined_metric_is_shown_as_such_and_beside_others_what_they_were_taken_over(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # nothing is wrapped
    folder = make_run(tmp_path, "run", "cccc4444" * 4, rounds=0)
    tasks = [
        task_report("sst2", {"loss": 0.25}, accuracy=(False, 0, 0, 2), loss=(False, 1, 30, 0)),
        task_report("qqp", {"f1": 0.75, "accuracy": 0.875}, f1=(True, 2, 70, 1), accuracy=(True, 2, 70, 0)),
    ]
    with contextlib.closing(History.open(folder / "history.sqlite")) as history:
        end_round(history, "cccc4444" * 4, 1, tasks=tasks)
        clients = {(one.task, one.name): one.num_clients for one in history.metrics("cccc4444" * 4)}
    assert clients == {("sst2", "loss"): 1, ("qqp", "f1"): 2, ("qqp", "accuracy"): 2}
    text = " ".join(shown("show", "cccc", "--round", 1, "--runs-dir", tmp_path).split())
    assert "loss 0.250 (mean, 30 rows of 1 client); accuracy undefined (for 2 clients)" in text
    assert (
        "f1 0.750 (pooled, 70 rows of 2 clients, undefined for 1 client); accuracy 0.875 (pooled, 70 rows of 2 clients)"
    ) in text
    (row,) = (line for line in shown("show", "cccc", "--runs-dir", tmp_path).splitlines() if "committed" in line)
    assert cells(row)[-2:] == ["undefined 50%", "0.750 50%"]
    assert "sst2 accuracy undefined, qqp f1 0.750" in shown("list", "--runs-dir", tmp_path)
    listed = json.loads(shown("list", "--json", "--runs-dir", tmp_path))
    assert listed[0]["metrics"]["sst2"] == {"metric": "accuracy", "value": None, "round": 0}


def test_a_round_that_has_not_ended_and_round_0_are_shown(runs_dir):
    with contextlib.closing(History.open(runs_dir / "third" / "history.sqlite")) as history:
        history.open_round("bbbb3333" * 4, 1, "train", 86_400_000, COHORT)
    text = shown("show", "third", "--round", 1, "--runs-dir", runs_dir)
    assert "outcome    open" in text
    assert "The round has no report, because it hasn't ended." in text
    assert "0 of 3" in shown("show", "third", "--runs-dir", runs_dir)
    assert "0, the model before the first round" in shown("show", "third", "--round", 0, "--runs-dir", runs_dir)
    assert refused("show", "third", "--round", 7, "--runs-dir", runs_dir).endswith("has rounds 0 to 1, got 7")


def test_a_round_is_shown_for_machines(runs_dir):
    whole = json.loads(shown("show", "first", "--json", "--runs-dir", runs_dir))
    assert [one["round"] for one in whole["rounds"]] == [0, 1, 2]
    assert whole["run"]["config"]["tasks"]["qqp"]["metrics"] == ["f1", "accuracy"]
    one = json.loads(shown("show", "first", "--round", 2, "--json", "--runs-dir", runs_dir))
    assert one["round"] == whole["rounds"][2]
    assert (one["round"]["num_counted"], one["round"]["report"]) == (2, report(2))
    assert [update["client_id"] for update in one["updates"]] == ["a", "b", "\x1b[31mred"]


@pytest.mark.parametrize("command", [("show", "first", "--json"), ("export", "first", "--what", "rounds")])
def test_updates_are_gone_through_once_however_many_rounds_there_are(command, runs_dir, monkeypatch):
    class Counted(list[UpdateRecord]):
        times = 0

        def __iter__(self) -> Iterator[UpdateRecord]:
            Counted.times += 1
            return super().__iter__()

    real = History.updates
    monkeypatch.setattr(History, "updates", lambda history, run_id: Counted(real(history, run_id)))
    shown(*command, "--runs-dir", runs_dir)
    assert Counted.times == 1


def test_a_password_that_is_in_a_run_is_not_shown(tmp_path):
    url = f"sqlite:///{tmp_path / 'all.sqlite'}"
    record = run_record("aaaa", tmp_path)
    stored = {"url": "postgresql+psycopg://me:hunter2@host/db", "durability": "power"}
    with contextlib.closing(History.open(url)) as history:
        history.begin_run(replace(record, config={**record.config, "store": stored}), {"shared": "00"})
    text = shown("show", "aaaa", "--json", "--url", url)
    assert "hunter2" not in text
    kept = {"url": "postgresql+psycopg://me@host/db", "durability": "power"}
    assert json.loads(text)["run"]["config"] == record.config | {"store": kept}


def test_a_round_that_was_played_anew_is_shown_without_its_earlier_updates(runs_dir):
    with contextlib.closing(History.open(runs_dir / "first" / "history.sqlite")) as history:
        run_id = "aaaa1111" * 4
        history.roll_back(run_id, 1)
        text = shown("show", "first", "--runs-dir", runs_dir)
        assert "rolled back" in text
        assert "stopped, 1 of 2 rounds" in text
        assert "rolled back" in shown("show", "first", "--round", 2, "--runs-dir", runs_dir)
        record = next(one for one in history.rounds(run_id) if one.round == 2)
        again = replace(record, outcome="committed", ended_at_unix_ms=NOW_MS)
        history.end_round(run_id, again, [one for one in history.updates(run_id) if one.update_id == "none"])
    assert "rolled back" not in shown("show", "first", "--runs-dir", runs_dir)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_updates_are_exported_with_their_metrics_as_columns(runs_dir):
    rows = table(shown("export", "first", "--what", "updates", "--runs-dir", runs_dir))
    assert len(rows) == 6
    assert (rows[0]["client_id"], rows[0]["received.accuracy"], rows[0]["received.f1"]) == ("a", "0.125", "")
    assert (rows[1]["client_id"], rows[1]["received.accuracy"], rows[1]["received.f1"]) == ("b", "", "0.5")
    assert (rows[2]["outcome"], rows[2]["code"], rows[2]["reason"]) == ("refused", "ABORTED", "expected [1], got [2]")
    assert {row["run_id"] for row in rows} == {"aaaa1111" * 4}


def test_rounds_are_exported_with_a_column_for_each_tasks_metric(runs_dir):
    rows = table(shown("export", "first", "--what", "rounds", "--runs-dir", runs_dir))
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    last = rows[2]
    assert (last["num_counted"], last["cohort_size"], last["num_refused"], last["missing_clients"]) == (
        "2",
        "3",
        "1",
        "c",
    )
    assert (last["sst2.encoder_share"], last["qqp.received.f1"], last["checkpoint.shared"]) == ("0.25", "0.5", "ab")
    assert rows[0]["sst2.encoder_share"] == ""


def test_metrics_are_exported(runs_dir):
    rows = table(shown("export", "first", "--what", "metrics", "--runs-dir", runs_dir))
    assert [(row["round"], row["task"], row["name"], row["value"], row["num_clients"]) for row in rows] == [
        ("0", "qqp", "f1", "0.5", "1"),
        ("0", "sst2", "accuracy", "0.125", "1"),
        ("1", "qqp", "f1", "0.5", "1"),
        ("1", "sst2", "accuracy", "0.25", "1"),
    ]


def test_json_is_exported_whole_and_strict_and_into_a_file(runs_dir, tmp_path):
    output = tmp_path / "rounds.json"
    options = ("--what", "rounds", "--format", "json", "--output", output, "--runs-dir", runs_dir)
    result = runs("export", "first", *options)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"3 rounds written to {output}\n")
    rows = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert rows[1]["report"] == report(1)
    assert "can't write" in refused("export", "first", *options[:-3], tmp_path / "no" / "a.json", *options[-2:])


def test_a_run_without_what_is_exported_gives_no_rows(runs_dir):
    assert shown("export", "third", "--what", "updates", "--runs-dir", runs_dir) == ""
    assert shown("export", "third", "--what", "metrics", "--format", "json", "--runs-dir", runs_dir) == "[]\n"


def names(runs_dir: Path) -> set[str]:
    return {path.name for path in runs_dir.iterdir() if path.is_dir()}


def test_what_would_be_removed_is_said_and_nothing_is_removed_without_yes(runs_dir):
    text = shown("prune", "--keep", 1, "--runs-dir", runs_dir)
    assert text.count("would remove: run ") == 2
    assert f"(finished), {runs_dir / 'first'}, 5.1 MB" in text
    assert text.endswith("Nothing was removed. Add --yes to remove these runs.\n")
    assert names(runs_dir) == {"first", "second", "third"}


def test_all_but_the_newest_are_removed_and_one_that_is_served_stays(runs_dir, served):
    text = shown("prune", "--keep", 1, "--yes", "--runs-dir", runs_dir)
    assert f"removed: run aaaa1111 of {time.strftime('%Y-%m-%d', time.gmtime(NOW_MS / 1000 - 9 * 86400))}" in text
    assert f"(running), {served}: a server is serving it" in text
    assert names(runs_dir) == {"second", "third"}
    assert (runs_dir / "notes.txt").exists()
    assert (served / "history.sqlite").exists()


def test_only_those_that_are_old_enough_are_removed(runs_dir):
    shown("prune", "--older-than", 9.5, "--yes", "--runs-dir", runs_dir)
    assert names(runs_dir) == {"first", "second", "third"}
    shown("prune", "--older-than", 2, "--keep", 2, "--yes", "--runs-dir", runs_dir)  # both must say so
    assert names(runs_dir) == {"second", "third"}
    shown("prune", "--older-than", 2, "--yes", "--runs-dir", runs_dir)
    assert names(runs_dir) == {"third"}


def test_pruning_everything_must_be_asked_for(runs_dir):
    assert refused("prune", "--yes", "--runs-dir", runs_dir).startswith("expected --keep N")
    shown("prune", "--keep", 0, "--yes", "--runs-dir", runs_dir)
    assert names(runs_dir) == set()


def test_links_are_removed_and_what_they_lead_to_stays(runs_dir, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (runs_dir / "first" / "link").symlink_to(outside)
    (runs_dir / "first" / "checkpoints" / "link").symlink_to(outside)
    shown("prune", "--keep", 2, "--yes", "--runs-dir", runs_dir)
    assert names(runs_dir) == {"second", "third"}
    assert (outside / "precious").exists()


def test_a_folder_that_is_a_link_is_left_alone(runs_dir, tmp_path):
    elsewhere = make_run(tmp_path / "elsewhere", "fourth", "dddd4444" * 4, age_days=20)
    (runs_dir / "link").symlink_to(elsewhere)
    text = shown("prune", "--keep", 3, "--yes", "--runs-dir", runs_dir)
    assert "link: its folder is a symbolic link" in text
    assert (elsewhere / "history.sqlite").exists()


def test_a_folder_of_another_run_is_left_alone(runs_dir, tmp_path, monkeypatch):
    (runs_dir / "first" / "run.json").write_text('{"run_id": "another"}')
    (runs_dir / "linked").mkdir()
    (runs_dir / "linked" / "history.sqlite").symlink_to(runs_dir / "third" / "history.sqlite")
    with contextlib.closing(History.open(runs_dir / "second" / "history.sqlite")) as history:
        add_run(history, "eeee5555", runs_dir, rounds=0)
    before = tree(runs_dir)
    monkeypatch.chdir(runs_dir / "third" / "checkpoints")
    text = shown("prune", "--keep", 0, "--yes", "--runs-dir", runs_dir)
    assert "first: its folder doesn't hold this run" in text
    assert "linked: its folder doesn't hold this run" in text
    assert "second: its database holds other runs (1)" in text
    assert "third: its folder contains the working directory" in text
    assert tree(runs_dir) == before


def test_a_removal_that_was_cut_short_is_taken_up_again(runs_dir, monkeypatch):
    real = os.unlink

    def unlink(path: Any, **options: Any) -> None:
        if str(path).endswith("history.sqlite"):
            raise PermissionError(13, "Permission denied", str(path))
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", unlink)
        patch.setattr("pathlib.os.unlink", unlink)
        result = runs("prune", "--keep", 2, "--yes", "--runs-dir", runs_dir)
        assert "can't remove" in str(result.exception)
    assert not (runs_dir / "first" / "checkpoints").exists()
    assert "removed: run aaaa1111" in shown("prune", "--keep", 2, "--yes", "--runs-dir", runs_dir)
    assert names(runs_dir) == {"second", "third"}


def test_a_database_of_many_runs_is_listed_shown_and_pruned(tmp_path):
    """As with PostgreSQL: the runs' folders are where their rows say."""
    url = f"sqlite:///{tmp_path / 'all.sqlite'}"
    with contextlib.closing(History.open(url)) as history:
        for name, run_id, age_days in (
            ("old", "aaaa", 3),
            ("gone", "bbbb", 2),
            ("strange", "cccc", 1),
            ("new", "dddd", 0),
        ):
            folder = tmp_path / name
            add_run(history, run_id, folder, age_days=age_days)
            if name != "gone":
                folder.mkdir()
                (folder / "run.json").write_text(json.dumps({"run_id": run_id if name != "strange" else "another"}))
    listed = json.loads(shown("list", "--url", url, "--json"))
    assert [run["run_id"] for run in listed] == ["dddd", "cccc", "bbbb", "aaaa"]
    assert "finished, 2 of 2 rounds" in shown("show", "old", "--url", url)
    text = shown("prune", "--keep", 1, "--yes", "--url", url)
    assert "strange: its folder doesn't hold this run" in text
    assert (tmp_path / "strange").exists()
    assert not (tmp_path / "old").exists()
    assert [run["run_id"] for run in json.loads(shown("list", "--url", url, "--json"))] == ["dddd", "cccc"]


def test_a_run_that_may_be_served_on_another_machine_is_not_removed(tmp_path):
    url = f"sqlite:///{tmp_path / 'all.sqlite'}"
    with contextlib.closing(History.open(url)) as history:
        add_run(history, "aaaa", tmp_path / "elsewhere", rounds=1)
    text = shown("prune", "--keep", 0, "--yes", "--url", url)
    assert "kept: run aaaa" in text
    assert "its folder isn't on this machine: a server elsewhere may be serving it" in text
    assert [run["run_id"] for run in json.loads(shown("list", "--url", url, "--json"))] == ["aaaa"]


def test_a_run_that_never_began_is_told_from_one_that_stopped_and_is_removed(tmp_path):
    url = f"sqlite:///{tmp_path / 'all.sqlite'}"
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "beginning.json").write_text(json.dumps({"run_id": "aaaa"}))
    with contextlib.closing(History.open(url)) as history:
        add_run(history, "aaaa", folder, rounds=0)
    assert [run["state"] for run in json.loads(shown("list", "--url", url, "--json"))] == ["never began"]
    with FileLock(folder / "lock"):  # the server that begins it
        assert [run["state"] for run in json.loads(shown("list", "--url", url, "--json"))] == ["running"]
    assert "removed: run aaaa" in shown("prune", "--keep", 0, "--yes", "--url", url)
    assert not folder.exists()
    assert json.loads(shown("list", "--url", url, "--json")) == []


def test_a_database_that_is_not_there_is_an_error_in_words(tmp_path):
    result = runs("list", "--url", f"sqlite:///{tmp_path / 'none.sqlite'}")
    assert str(result.exception) == f"{tmp_path / 'none.sqlite'}: there is no such file"
    assert list(tmp_path.iterdir()) == []


def test_the_commands_need_no_pytorch(runs_dir):
    code = (
        "import sys; from fedmtl_server.commands.runs import runs_app; "
        f"runs_app(['show', 'first', '--runs-dir', {str(runs_dir)!r}], standalone_mode=False); "
        f"runs_app(['show', 'first', '--sharing', '--runs-dir', {str(runs_dir)!r}], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], stdout=subprocess.DEVNULL)
