"""`fedmtl-local new`: what options and people may say of a task, and what its rows say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from fedmtl_core import config as configuration
from fedmtl_core.errors import ConfigError, FedMTLError
from fedmtl_local.new import cli, writing
from tests.local.new_federations import TOY, new, opinions, refused, rows_of, save


def labelled(path: Path, labels: list[object], **more: object) -> str:
    """Rows with different texts, and these labels in the column `label`."""
    return save(path, [{"text": f"words of row {row}", "label": label, **more} for row, label in enumerate(labels)])


def specs(folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    return [(spec.type, spec.labels) for spec in configuration.load(folder / "federation.yaml").task_specs()]


def dropped(folder: Path) -> list[str]:
    (data,) = (task.data for task in configuration.load(folder / "clients/t-site.yaml").tasks.values())
    return data.drop_labels


def test_given_labels_make_a_classification(tmp_path):
    path = labelled(tmp_path / "a.csv", [row % 12 * 3 for row in range(60)])
    labels = ",".join(str(3 * number) for number in range(12))
    new(tmp_path / "fed", "--task", f"t={path}", "--labels", labels)
    assert specs(tmp_path / "fed") == [("classification", tuple(labels.split(",")))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--type", "regression", "--labels", "a,b"], "--labels: the task 't' is a regression task, which has no lab"),
        (["--type", "masked_lm", "--label-column", "verdict"], "--label-column: the task 't' is a masked_lm task"),
        (["--label-column", ""], "--label-column: expected the name of a column, got an empty text"),
        (["--text-columns", "sentence,verdict"], "--text-columns: 'verdict' is the label column"),
        (["--text-columns", "a,b,c"], "--text-columns: expected 1 or 2 text columns, got 3"),
        (["--labels", "good"], "needs at least 2 labels"),
        (["--encoder", ""], "--encoder: expected a folder, .*, got ''"),
        (["--encoder", "some encoder"], "--encoder: expected a folder, .*, got 'some encoder'"),
    ],
)
def test_an_option_that_the_task_cannot_use_is_an_error(tmp_path, options, message):
    refused(tmp_path, ConfigError, message, "--task", f"t={opinions(tmp_path / 'a.csv')}", *options)


def test_a_second_file_without_the_column_is_an_error_with_a_way_out(tmp_path):
    other = save(tmp_path / "b.csv", [{"body": "some words", "verdict": "good"}] * 5)
    message = "--text-columns: the task 't' needs the column 'sentence', and .*b.csv has body, verdict; rename the col"
    refused(tmp_path, ConfigError, message, "--task", f"t={opinions(tmp_path / 'a.csv')},{other}")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text;label\nsome words;a\n", "a.csv has a semicolon between its columns.*: save it with commas"),
        ("a.csv", "text\tlabel\nsome words\ta\n", "a tab between its columns.*: name the file .tsv"),
        ("a.tsv", "text,label\nsome words,a\n", "a comma between its columns.*: name the file .csv"),
        ("a.csv", "text,text,label\nx y,z,a\n", "'text' is left out: 2 columns have this name; rename all but one"),
        ("a.jsonl", '{"text": "x y"}\n{"text": "z", "label": "a"}\n', "'label' is left out: .*no 'label', which other"),
        (
            "a.csv",
            "some words,a\n" + "other words,b\nmore words,a\n" * 3,
            "its first line looks like a row.*'a' is also one",
        ),
    ],
)
def test_columns_that_cannot_be_used_are_named_with_the_reason(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    refused(tmp_path, FedMTLError, message, "--task", f"t={tmp_path / name}", name="fed")


def test_a_column_may_be_named_as_one_of_its_labels(tmp_path):
    rows = [{"text": f"words of row {row}", "spam": ("spam", "ham")[row % 2]} for row in range(20)]
    new(tmp_path / "fed", "--task", f"t={save(tmp_path / 'a.csv', rows)}", "--label-column", "spam")
    assert specs(tmp_path / "fed") == [("classification", ("ham", "spam"))]


def test_indices_of_no_class_are_left_out(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"words {row}" for row in range(30)], "label": [row % 3 - 1 for row in range(30)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    said = new(tmp_path / "fed", "--task", f"t={tmp_path}/a.parquet,{tmp_path}/a.parquet")
    assert "t: 20 rows have no label ('-1')" in said
    assert dropped(tmp_path / "fed") == ["", "-1"]
    assert "no 10, yes 10" in said  # counted beside the dropped rows


def test_each_file_names_its_classes(tmp_path):
    names = {"a": ["no", "yes"], "b": ["yes", "no"]}
    for file, classes in names.items():
        label = datasets.ClassLabel(names=classes)
        features = datasets.Features({"text": datasets.Value("string"), "label": label})
        rows = {"text": [f"words {row}" for row in range(30)], "label": [row % 2 for row in range(30)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{file}.parquet")
    new(tmp_path / "fed", *(part for file in names for part in ("--task", f"t@{file}={tmp_path}/{file}.parquet")))
    assert specs(tmp_path / "fed") == [("classification", ("no", "yes"))]


def test_words_for_missing_numbers_are_left_out(tmp_path):
    path = labelled(tmp_path / "a.csv", ["NaN" if row % 6 == 0 else row / 8 for row in range(40)])
    assert "t: 7 rows have no label ('NaN')" in new(tmp_path / "fed", "--task", f"t={path}")
    assert (specs(tmp_path / "fed"), dropped(tmp_path / "fed")) == ([("regression", ())], ["NaN"])


def test_words_for_missing_names_are_labels_unless_the_labels_are_given(tmp_path):
    path = labelled(tmp_path / "a.csv", [("NA", "x", "y")[row % 3] for row in range(30)])
    assert "t: 'NA' in 10 rows is one of the labels" in new(tmp_path / "one", "--task", f"t={path}")
    new(tmp_path / "two", "--task", f"t={path}", "--labels", "x,y")
    assert (specs(tmp_path / "two"), dropped(tmp_path / "two")) == ([("classification", ("x", "y"))], ["NA"])


def test_columns_that_are_as_likely_are_named(tmp_path):
    rows = [{"text": f"words {row}", "urgent": "yn"[row % 2], "queue": "ab"[row % 2]} for row in range(20)]
    said = new(tmp_path / "fed", "--task", f"t={save(tmp_path / 'a.csv', rows)}")
    assert "t: the label column queue is proposed, and urgent is as likely (--label-column)" in said


def test_texts_of_training_rows_among_the_evaluation_rows_are_a_warning(tmp_path):
    train, dev = (labelled(tmp_path / f"{count}.csv", list("ab" * count)) for count in (10, 15))
    said = new(tmp_path / "fed", "--task", f"t={train},{dev}")
    assert "20 of 30 evaluation rows have the texts of training rows" in said


def test_the_proposed_longest_input_is_one_that_the_encoder_takes(tmp_path):
    rows = [{**row, "sentence": f"{row['sentence']} " * 80} for row in rows_of("sst2", 20)]
    new(tmp_path / "fed", "--task", f"t={save(tmp_path / 'a.csv', rows)}")
    assert configuration.load(tmp_path / "fed/federation.yaml").training.max_length == 128


def test_wrong_answers_are_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_is_terminal", lambda: True)
    monkeypatch.chdir(tmp_path)
    opinions(tmp_path / "a.csv")
    answers = {
        "none": "the task 'mood' needs the column 'none', and a.csv has sentence, verdict",
        " ": "expected the name of a column, got an empty text",
        "verdict": "",
        "verdict,sentence": "'verdict' is the label column",
        "sentence": "",
        "classification": "",
        "good,awful": "expected one of good, awful",
        "good,bad": "",
        "pearson": "metric 'pearson' doesn't fit",
        "accuracy": "",
        "127.0.0.1:7": "",
    }
    tasks = ["mood", "..", "desk", "a.csv", "", "desk", "", "mood", ""]
    said = new(tmp_path / "fed", answers="\n".join([*tasks, *answers]) + "\n")
    for error in (*answers.values(), "a site's name can't be", "desk has been named already", "mood has been named"):
        assert error in said
    assert "--task:" not in said


def test_the_end_of_the_answers_says_that_nothing_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_is_terminal", lambda: True)
    result = CliRunner().invoke(cli.new_federation_app, [str(tmp_path / "fed"), *TOY], input="mood\n")
    assert (result.exit_code, "nothing was written" in result.output) == (1, True)


def test_ctrl_c_at_a_question_says_that_nothing_was_written(tmp_path):
    pty = pytest.importorskip("pty")
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "fedmtl_local", "new", "fed"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=inner, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        assert asking.stdout.read(len("Name")) == "Name"
        asking.send_signal(signal.SIGINT)
        _, said = asking.communicate(timeout=60)
    os.close(outer), os.close(inner)
    assert (asking.returncode, said.strip()) == (130, "nothing was written")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_copies_of_rows(tmp_path, monkeypatch, number):
    path = opinions(tmp_path / "a.csv")

    def killed(*arguments: object) -> None:
        assert list(tmp_path.glob(".fed-*/new/data"))
        os.kill(os.getpid(), number)

    monkeypatch.setattr(writing, "dry_run", killed)
    handler = signal.getsignal(number)
    result = CliRunner().invoke(cli.new_federation_app, [str(tmp_path / "fed"), *TOY, "--task", f"t={path}"])
    assert result.exit_code == 128 + number
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.csv"]
    assert signal.getsignal(number) == handler


def test_files_for_connections_between_machines_name_their_credentials(tmp_path):
    new(tmp_path / "fed", "--task", f"t={opinions(tmp_path / 'a.csv')}", "--server", "example.org:50051")
    assert "#     client_ca: certs/ca.pem" in (tmp_path / "fed/federation.yaml").read_text()
    page = (tmp_path / "fed/README.md").read_text()
    assert page.index("clients add t-site --config federation.yaml --task t --certificate") < page.index("--host 0.0")
    assert "a failure at `server`, and at `credentials`" in " ".join(page.split())
