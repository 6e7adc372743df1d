"""`fedmtl-local new`: the files of a new federation, from the rows of its tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedmtl_client import Client
from fedmtl_core import config as configuration
from fedmtl_core.errors import ConfigError, DataError, ModelUnavailableError
from fedmtl_local.new import cli
from fedmtl_local.new.entries import Entry, parse_entry
from fedmtl_local.new.quorums import min_clients
from fedmtl_server import Server
from fedmtl_server.rounds.quorums import lacking
from fedmtl_server.rounds.task_selection import RoundRobin, choose_tasks
from tests import tiny_encoders
from tests.local.new_federations import TOY, new, opinions, refused, rows_of, save


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_type_and_labels_are_proposed_from_files_of_every_format(tmp_path, ending):
    train, dev = (opinions(tmp_path / f"{name}.{ending}") for name in ("train", "dev"))
    scores = save(tmp_path / f"scores.{ending}", rows_of("stsb", 60))
    said = new(tmp_path / "fed", "--task", f"mood@desk={train},{dev}", "--task", f"likeness@archive={scores}")
    assert "mood: classification, text sentence, label verdict (bad, good)" in said
    assert "likeness: regression, text sentence1 and sentence2, label label" in said
    config = configuration.load(tmp_path / "fed" / "federation.yaml")
    mood, likeness = config.task_specs()
    assert (mood.text_columns, mood.label_column, mood.labels) == (("sentence",), "verdict", ("bad", "good"))
    assert (mood.metrics, likeness.metrics) == (("accuracy", "f1"), ("pearson", "spearman"))
    assert likeness.value_range == (0.0, 5.0)
    assert config.model.server_model == "builtin:toy"
    assert [task.data for task in config.tasks.values()] == [None, None]


def test_a_clients_file_has_what_that_client_needs_and_paths_that_are_right_from_any_folder(tmp_path, monkeypatch):
    opinions(tmp_path / "train.csv"), opinions(tmp_path / "dev.csv")
    monkeypatch.chdir(tmp_path)
    new(Path("fed"), "--task", "mood@desk=train.csv,dev.csv", "--task", "other@archive=dev.csv", "--server", "h:7")
    desk = configuration.load(tmp_path / "fed/clients/desk.yaml")
    assert list(desk.tasks) == ["mood"]
    assert desk.tasks["mood"].data.train == str(tmp_path / "train.csv")
    assert desk.client.server == "h:7"
    assert [(one.client_id, one.task_names) for one in desk.clients] == [("desk", ("mood",))]
    server = configuration.load(tmp_path / "fed/federation.yaml")
    assert [one.config for one in server.clients] == [
        tmp_path / "fed/clients/desk.yaml",
        tmp_path / "fed/clients/archive.yaml",
    ]
    assert server.server.port == 7
    assert (server.sharing.mode, server.sharing.adaptive.policy) == ("auto", "validated")
    assert "sharing" not in (tmp_path / "fed/clients/desk.yaml").read_text()
    assert "--host 0.0.0.0" in (tmp_path / "fed/README.md").read_text()


def test_one_file_is_split_and_its_copy_has_the_columns_that_are_needed(tmp_path):
    rows = [{**row, "secret": "x"} for row in rows_of("sst2", 50)]
    new(tmp_path / "fed", "--task", f"mood={save(tmp_path / 'all.parquet', rows)}")
    files = sorted((tmp_path / "fed/data/mood-site").iterdir())
    assert [path.name for path in files] == ["mood-train.jsonl", "mood-validation.jsonl"]
    parts = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
    assert (sum(map(len, parts)), len(parts[1])) == (50, 10)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert set(parts[0][0]) == {"sentence", "label"}


def test_sites_share_one_file_or_have_files_of_their_own(tmp_path):
    first, second = opinions(tmp_path / "a.csv"), opinions(tmp_path / "b.csv")
    new(tmp_path / "one", "--task", f"mood@x,y={first}")
    clients = [configuration.load(tmp_path / f"one/clients/{site}.yaml") for site in "xy"]
    assert [one.clients[0].shard for one in clients] == ["1/2", "2/2"]
    assert clients[0].tasks["mood"].data == clients[1].tasks["mood"].data
    assert configuration.load(tmp_path / "one/federation.yaml").tasks["mood"].min_clients == 2
    new(tmp_path / "two", "--task", f"mood@x={first}", "--task", f"mood@y={second}")
    paths = [configuration.load(tmp_path / f"two/clients/{site}.yaml").tasks["mood"].data.train for site in "xy"]
    assert paths == [str(tmp_path / f"two/data/{site}/mood-train.jsonl") for site in "xy"]
    assert configuration.load(tmp_path / "two/federation.yaml").tasks["mood"].min_clients == 2
    refused(tmp_path, ConfigError, "'x' has two entries", "--task", f"m@x={first}", "--task", f"m@x={second}")
    refused(tmp_path, ConfigError, "one part of all", "--task", f"m@x,y={first}", "--task", f"n@x={second}")


def test_the_classes_of_a_task_are_those_of_all_sites(tmp_path):
    first = save(tmp_path / "a.csv", [{"text": "some words", "label": "b"}, {"text": "more of them", "label": "a"}] * 3)
    second = save(
        tmp_path / "b.csv", [{"text": "some words", "label": "c"}, {"text": "more of them", "label": "a"}] * 3
    )
    said = new(tmp_path / "fed", "--task", f"t@x={first},{first}", "--task", f"t@y={second},{second}")
    assert "t: classification, text text, label label (a, b, c)" in said
    assert "no row has the label c" in said  # a warning


def test_rows_without_a_label_are_left_out(tmp_path):
    rows = rows_of("sst2", 40)
    rows[3]["label"] = ""
    path = save(tmp_path / "a.csv", rows)
    said = new(tmp_path / "fed", "--task", f"mood={path},{path}")
    assert "mood: 2 rows have no label" in said
    assert configuration.load(tmp_path / "fed/clients/mood-site.yaml").tasks["mood"].data.drop_labels == [""]


def test_options_overrule_proposals(tmp_path):
    rows = [{"note": "some words", "text": "other words", "stars": str(1 + row % 5)} for row in range(40)]
    path = save(tmp_path / "a.csv", rows)
    new(
        tmp_path / "fed",
        *("--task", f"t={path},{path}", "--task", f"u={path},{path}", "--text-columns", "t=note,text"),
        *("--type", "t=regression", "--metrics", "t=spearman", "--labels", "u=5,4,3,2,1", "--label-column", "u=stars"),
        *("--max-length", "16", "--rounds", "3"),
    )
    config = configuration.load(tmp_path / "fed/federation.yaml")
    t, u = config.task_specs()
    assert (t.text_columns, t.type, t.metrics, t.value_range) == (("note", "text"), "regression", ("spearman",), (1, 5))
    assert u.labels == ("5", "4", "3", "2", "1")
    assert (config.training.max_length, config.training.num_rounds) == (16, 3)


def test_texts_without_labels_are_a_task_too(tmp_path):
    path = save(tmp_path / "a.csv", [{"text": row["sentence"]} for row in rows_of("sst2", 40)])
    new(tmp_path / "fed", "--task", f"words={path}", "--type", "masked_lm")
    assert configuration.load(tmp_path / "fed/clients/words-site.yaml").task_specs()[0].type == "masked_lm"
    refused(tmp_path, ConfigError, "has one column \\(text\\).*--type words=masked_lm", "--task", f"words={path}")


def test_what_cannot_work_is_refused_and_nothing_is_written(tmp_path):
    good = opinions(tmp_path / "good.csv")
    many = [{"text": f"some words {row}", "label": f"label {row}"} for row in range(500)]
    task = ("--task", f"t={save(tmp_path / 'many.csv', many)}")
    refused(tmp_path, ConfigError, r"--labels: needed: the task 't'.* 500 different values \(label 0, ", *task)
    (tmp_path / "empty.csv").touch()
    refused(
        tmp_path,
        DataError,
        "task t: .*empty.csv can't be read as csv: the file is empty",
        "--task",
        f"t={tmp_path}/empty.csv",
    )
    refused(tmp_path, DataError, "task t: there is no file", "--task", f"t={tmp_path}/none.csv")
    refused(tmp_path, ConfigError, "--task: needed, once for each task")
    refused(tmp_path, ConfigError, "needs the column 'kind', and", "--task", f"t={good}", "--label-column", "kind")
    refused(tmp_path, ConfigError, "--type: expected one of classification", "--task", f"t={good}", "--type", "words")
    refused(
        tmp_path, ConfigError, "--metrics: given twice", "--task", f"t={good}", "--metrics", "f1", "--metrics", "f1"
    )
    refused(tmp_path, ConfigError, "metric 'pearson' doesn't fit", "--task", f"t={good}", "--metrics", "pearson")
    refused(tmp_path, ModelUnavailableError, "no such folder", "--task", f"t={good}", "--encoder", "/no/such/folder")
    two = save(tmp_path / "two.csv", [{"text": "same words", "label": name} for name in "ababab"])
    refused(tmp_path, DataError, "6 rows with 1 different texts: too few", "--task", f"t={two}")


def test_labels_that_do_not_match_end_the_dry_run_and_nothing_is_written(tmp_path):
    good = opinions(tmp_path / "good.csv")
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(
        cli.new_federation_app, [str(tmp_path / "fed"), *TOY, "--task", f"t={good}", "--labels", "good,awful"]
    )
    assert result.exit_code == 1
    assert "expected one of good, awful; got 'bad' in" in result.output
    assert "the dry run failed; nothing was written" in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_the_longest_input_fits_an_encoder_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_encoders.save(tmp_path / "tiny", "bert")
    texts = [{"text": "zaba dilo " * 40 + str(row), "label": "ab"[row % 2]} for row in range(20)]
    options = ("--task", f"t={save(tmp_path / 'a.csv', texts)}", "--encoder", "tiny")
    result = CliRunner().invoke(cli.new_federation_app, ["fed", *options, "--max-length", "128"])
    assert result.exit_code == 1
    assert "tiny takes at most 64 tokens, got 128" in result.output
    new(Path("fed"), *options)
    config = configuration.load(Path("fed/federation.yaml"))
    assert (config.model.server_model, config.training.max_length) == (str(tmp_path / "tiny"), 64)


def test_an_encoder_on_the_model_hub_is_not_loaded(tmp_path):
    said = new(tmp_path / "fed", "--task", f"t={opinions(tmp_path / 'a.csv')}", "--encoder", "some/encoder")
    assert "not checked: ports, and the encoder some/encoder with its tokenizer" in said
    config = configuration.load(tmp_path / "fed/federation.yaml")
    assert (config.model.server_model, config.training.learning_rate) == ("some/encoder", 5e-5)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, monkeypatch):
    task = ("--task", f"t={opinions(tmp_path / 'good.csv')}")
    (tmp_path / "fed").mkdir()
    (tmp_path / "fed/notes.txt").write_text("mine")
    refused(tmp_path, ConfigError, r"DIR: .*fed exists and isn't empty; name a new folder", *task, name="fed")
    (tmp_path / "fed/notes.txt").unlink()
    new(tmp_path / "fed", *task)
    new(tmp_path / "inner/most/fed", *task)
    assert not list(tmp_path.rglob(".*"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    new(Path("."), *task)
    assert Path("federation.yaml").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file; name a new folder"):
        new(tmp_path / "file", *task)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("t=a.csv", Entry("t", ("t-site",), "a.csv", None)),
        ("t@x=a.csv,b.csv", Entry("t", ("x",), "a.csv", "b.csv")),
        ("t@x,y=s3://b/a=1.csv", Entry("t", ("x", "y"), "s3://b/a=1.csv", None)),
    ],
)
def test_an_entry_names_a_task_its_sites_and_its_files(text, entry):
    assert parse_entry(text) == entry


@pytest.mark.parametrize(
    "text", ["t", "t=", "=a.csv", "t@=a.csv", "a b=a.csv", "t.u=a.csv", "t=a,b,c", "t=a,", "t@a,a=f", "t@..=f", "t@.=f"]
)
def test_an_entry_of_another_form_is_refused(text):
    with pytest.raises(ConfigError, match="--task: "):
        parse_entry(text)


def test_a_person_is_asked_for_what_no_option_says(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_is_terminal", lambda: True)
    monkeypatch.chdir(tmp_path)
    opinions(tmp_path / "train.csv"), opinions(tmp_path / "dev.csv")
    answers = [
        *("mood", "desk", "none.csv", "train.csv", "dev.csv", ""),  # a file that isn't there is asked for again
        "",  # no other task
        *("", "", "regr", "classification", "good,bad", ""),  # columns, type, labels, metrics
        "",  # address
    ]
    said = new(tmp_path / "fed", answers="\n".join(answers) + "\n")
    assert "there is no file 'none.csv'" in said
    assert "expected one of classification, regression, masked_lm, got 'regr'" in said
    assert "mood: column of the label [verdict]:" in said
    assert configuration.load(tmp_path / "fed/federation.yaml").task_specs()[0].labels == ("good", "bad")


def test_at_a_real_terminal_questions_are_asked(tmp_path):
    pty = pytest.importorskip("pty")
    train = opinions(tmp_path / "train.csv")
    command = [sys.executable, "-m", "fedmtl_local", "new", "fed", *TOY, "--task", f"mood={train}"]
    outer, inner = pty.openpty()
    os.write(outer, b"\n" * 6)
    done = subprocess.run(command, cwd=tmp_path, stdin=inner, capture_output=True, text=True, timeout=120, check=False)
    os.close(outer), os.close(inner)
    assert done.returncode == 0, done.stderr
    assert "mood: column of the label [verdict]:" in done.stdout
    assert yaml.safe_load((tmp_path / "fed/federation.yaml").read_text())["tasks"]["mood"]["labels"] == [
        "bad",
        "good",
    ]


def test_server_and_clients_run_from_the_written_files(tmp_path):
    scores = save(tmp_path / "scores.jsonl", rows_of("stsb", 40))
    mood = opinions(tmp_path / "mood.tsv")
    new(tmp_path / "fed", "--task", f"mood@a,b={mood}", "--task", f"likeness@c={scores}", "--rounds", "1")
    config = configuration.load(tmp_path / "fed/federation.yaml", ["server.port=0", "rounds.rejoin_grace_s=0.5"])
    with ThreadPoolExecutor(3) as pool, Server(config, tmp_path / "run") as server:
        clients = [
            pool.submit(Client(tmp_path / f"fed/clients/{site}.yaml", client_id=site, server=server.address).run)
            for site in "abc"
        ]
        results = server.wait()
        for client in clients:
            client.result(timeout=60)
    assert sorted(results) == ["likeness", "mood"]


@pytest.mark.long
def test_the_commands_of_the_readme_work(tmp_path):
    mood = opinions(tmp_path / "mood.csv")
    scores = save(tmp_path / "scores.parquet", rows_of("stsb", 40))
    new(tmp_path / "fed", "--task", f"mood@desk={mood}", "--task", f"likeness@archive={scores}", "--rounds", "1")

    def run(command: str, code: int = 0) -> str:
        program, *rest = command.split()
        done = subprocess.run(
            [sys.executable, "-m", program.replace("-", "_"), *rest],
            cwd=tmp_path / "fed",
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    lines = (tmp_path / "fed/README.md").read_text().splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ fedmtl")]
    assert "fedmtl-client doctor --config clients/desk.yaml --client-id desk" in commands
    run("fedmtl-server doctor --config federation.yaml --set server.port=0")
    assert "no server at 127.0.0.1:50051" in run(commands[1], code=1)
    local = next(one for one in commands if one.startswith("fedmtl-local"))
    assert "Final evaluation" in run(local)
    run(next(one for one in commands if one.startswith("fedmtl-server export")))


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ({"a": ["x"], "b": ["x"], "c": ["y"]}, {"x": 2, "y": 1}),
        ({"a": ["x", "y"], "b": ["z"]}, {"x": 0, "y": 0, "z": 1}),
        ({"a": ["x", "y"]}, {"x": 0, "y": 0}),
        ({"a": ["x", "y"], "b": ["y", "x"], "c": ["x"]}, {"x": 2, "y": 1}),
        ({"a": ["x", "y"], "b": ["x", "z"], "c": ["z"]}, {"x": 0, "y": 0, "z": 1}),
        ({"a": ["x", "y", "z"], "b": ["x", "y", "z"], "c": ["y"]}, {"x": 0, "y": 1, "z": 0}),
    ],
)
def test_rounds_open_with_the_quorums_and_train_every_task_of_every_site(sites, expected):
    quorums = min_clients(sites)
    assert quorums == expected
    assert not lacking(sites, quorums)
    trained = [choose_tasks(RoundRobin(), sites, round_, quorums, {}, 0) for round_ in range(1, 13)]
    for site, tasks in sites.items():
        assert {chosen[site] for chosen in trained} == set(tasks)


def test_a_site_with_several_tasks_trains_one_per_round(tmp_path):
    first, second = opinions(tmp_path / "a.csv"), opinions(tmp_path / "b.csv")
    said = new(tmp_path / "fed", "--task", f"m@x={first}", "--task", f"n@x={second}", "--task", f"o@y={first}")
    assert "The site x has several tasks: a client trains one task per round, in turn." in said
    assert "The site x has several tasks" in (tmp_path / "fed/README.md").read_text()
    tasks = configuration.load(tmp_path / "fed/federation.yaml").tasks
    assert [tasks[name].min_clients for name in "mno"] == [0, 0, 1]


def test_a_folders_name_is_quoted_in_the_next_command(tmp_path):
    said = new(tmp_path / "two words", "--task", f"m={opinions(tmp_path / 'a.csv')}")
    assert f"next: cd '{tmp_path}/two words' && fedmtl-local" in said
