"""`fedmtl-client init`: a client's file, from the tasks of a running server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedmtl_client import Client, init_cli
from fedmtl_client.columns import Columns
from fedmtl_client.doctor_cli import doctor_app
from fedmtl_client.server_tasks import ServerTask, described
from fedmtl_core import config as configuration
from fedmtl_core.errors import ConfigError, DataError, FedMTLError, UnauthenticatedError, UnavailableError
from fedmtl_server import Server
from fedmtl_server.commands.app import app as server_app

CONFIG = """
model: {server_model: "builtin:toy"}
training: {num_rounds: 1, local_epochs: 1, max_length: 48}
rounds: {rejoin_grace_s: 0.5}
server: {port: 0}
tasks:
  tickets:
    {type: classification, labels: [bug, praise], text_columns: [text], label_column: kind, metrics: [accuracy, f1]}
  scores: {type: regression, text_columns: [a, b], label_column: score}
  words: {type: masked_lm, text_columns: [text], min_clients: 0}
"""
ROWS = "body,lang,verdict\nthe car was great,de,praise\nthe house was awful,en,bug\nthe coat was dull,de,bug\n"


@contextmanager
def serving(folder: Path, *overrides: str) -> Iterator[str]:
    """A server's address."""
    (folder / "server.yaml").write_text(CONFIG)
    with Server(configuration.load(folder / "server.yaml", overrides), folder / "run") as server:
        yield server.address


def init(file: Path, *options: str, code: int = 0) -> str:
    """What the command says."""
    result = CliRunner().invoke(init_cli.init_app, [str(file), *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def rows_in(folder: Path, text: str = ROWS) -> str:
    (folder / "rows.csv").write_text(text)
    return f"{folder}/rows.csv,{folder}/rows.csv"


def test_a_file_for_one_task_has_the_servers_labels_and_the_columns_of_the_data(tmp_path):
    data, file = rows_in(tmp_path), tmp_path / "clients" / "desk.yaml"
    with serving(tmp_path) as address:
        said = init(file, "--server", address, "--task", "tickets", "--data", data)
        assert f"{address} has tickets (classification: bug, praise)" in said
        assert "3, using the columns body, verdict; bug 2, praise 1" in said
        assert f"next: fedmtl-client doctor --config {file} --client-id desk" in said
        config = configuration.load(file)
        assert config.client.server == address
        (spec,) = config.task_specs()
        assert (spec.labels, spec.text_columns, spec.label_column) == (("bug", "praise"), ("body",), "verdict")
        assert set(spec.metrics) == {"accuracy", "f1", "matthews"}  # the server's are among them
        assert config.tasks["tickets"].data.train == str(tmp_path / "rows.csv")
        assert Client(file).client_id == "desk"


def test_a_client_takes_part_with_the_written_file(tmp_path):
    with serving(tmp_path, "tasks.scores.min_clients=0") as address:
        init(tmp_path / "desk.yaml", "--server", address, "--task", "tickets", "--data", rows_in(tmp_path))
        assert Client(tmp_path / "desk.yaml").run().rounds


def test_without_data_the_file_has_every_task_and_placeholders(tmp_path):
    with serving(tmp_path) as address:
        said = init(tmp_path / "all.yaml", "--server", address, "--client-id", "x")
    config = configuration.load(tmp_path / "all.yaml")
    assert [(spec.name, spec.type) for spec in config.task_specs()] == [
        ("tickets", "classification"),
        ("scores", "regression"),
        ("words", "masked_lm"),
    ]
    assert config.clients[0].task_names == ("tickets", "scores", "words")
    assert config.tasks["tickets"].data.train == "TRAIN_FILE"
    assert "0 ok" not in said
    assert "edit tasks.scores: text_columns, label_column and data are placeholders" in said


def test_labels_that_the_server_does_not_have_are_named(tmp_path):
    data = rows_in(tmp_path, ROWS + "the car was old,en,spam\nthe car was red,en,bug\n")
    with serving(tmp_path) as address:
        said = init(tmp_path / "a.yaml", "--server", address, "--task", "tickets", "--data", data, code=1)
    assert "fail  tickets: train rows" in said
    assert "verdict: expected one of bug, praise; got 'spam' in 1 rows" in said
    assert "next: fix what failed, or name other columns, and repeat this command with --force" in said
    assert "next: fedmtl-client doctor" not in said
    assert (tmp_path / "a.yaml").exists()


def test_rows_without_a_label_and_texts_in_both_files_are_said(tmp_path):
    data = rows_in(tmp_path, ROWS + "the car was old,en,\nthe car was red,en,n/a\n")
    with serving(tmp_path) as address:
        said = init(tmp_path / "a b.yaml", "--server", address, "--task", "tickets", "--data", data, "--client-id", "x")
    assert "tickets: 4 rows have no label; drop_labels leaves them out" in said
    assert "3 of 3 evaluation rows have the texts of training rows" in said
    assert f"next: fedmtl-client doctor --config '{tmp_path}/a b.yaml' --client-id x" in said
    assert configuration.load(tmp_path / "a b.yaml").tasks["tickets"].data.drop_labels == ["", "n/a"]
    assert "# the server's metrics must be among them" in (tmp_path / "a b.yaml").read_text()


def test_one_file_is_split_into_files_that_only_the_owner_reads(tmp_path):
    (tmp_path / "rows.csv").write_text("text,lang\n" + "".join(f"some words {row},en\n" for row in range(10)))
    file, options = tmp_path / "clients/desk.yaml", ("--task", "words", "--data", str(tmp_path / "rows.csv"))
    with serving(tmp_path) as address:
        said = init(file, "--server", address, *options)
        data = configuration.load(file).tasks["words"].data
        paths = [tmp_path / f"clients/desk-words-{split}.jsonl" for split in ("train", "validation")]
        assert (data.train, data.validation) == tuple(map(str, paths))
        assert [len(path.read_text().splitlines()) for path in paths] == [8, 2]
        assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
        assert f"wrote {file}, {paths[0]}, {paths[1]}" in said
        file.unlink()
        with pytest.raises(ConfigError, match=r"desk-words-train\.jsonl, a file of split rows, exists; overwrite"):
            init(file, "--server", address, *options)
        init(file, "--server", address, *options, "--force")


def test_a_run_that_is_over_is_said(tmp_path):
    with serving(tmp_path, "tasks.scores.min_clients=0") as address:
        init(tmp_path / "desk.yaml", "--server", address, "--task", "tickets", "--data", rows_in(tmp_path))
        Client(tmp_path / "desk.yaml").run()
        said = init(tmp_path / "new.yaml", "--server", address, "--task", "words")
    assert f"the run of {address} is over: no client can join it" in said
    assert "next: start a new run of the server, then fedmtl-client doctor" in said


def test_columns_are_taken_as_they_are_given(tmp_path):
    data = rows_in(tmp_path, "x,y,z,score\nthe car,the house,the coat,0.5\nthe car,the home,a coat,1.5\n")
    options = ("--task", "scores", "--data", data, "--text-columns", "x,z", "--label-column", "score")
    with serving(tmp_path) as address:
        init(tmp_path / "a.yaml", "--server", address, *options)
        spec = configuration.load(tmp_path / "a.yaml").task_specs()[0]
        assert (spec.text_columns, spec.label_column) == (("x", "z"), "score")
        with pytest.raises(DataError, match=r"rows\.csv has no column 'q'; its columns are x, y, z, score"):
            init(tmp_path / "b.yaml", "--server", address, *options[:-1], "q")
        assert not (tmp_path / "b.yaml").exists()


def test_what_cannot_work_is_an_error_and_nothing_is_written(tmp_path):
    file = tmp_path / "a.yaml"

    def refused(error: type[FedMTLError], match: str, *options: str) -> None:
        with pytest.raises(error, match=match):
            init(file, *options)
        assert not file.exists()

    with pytest.raises(ConfigError, match=r"FILE: client id: .*got 'my site'; name the client with --client-id"):
        init(tmp_path / "my site.yaml")
    refused(UnavailableError, "no server at 127.0.0.1:1: ", "--server", "127.0.0.1:1")
    refused(ConfigError, "--server: example.org:1 may be another machine", "--server", "example.org:1")
    with serving(tmp_path) as address:
        server = ("--server", address)
        refused(ConfigError, "--task: the server has the tasks tickets, scores, words, got 'x'", *server, "--task", "x")
        refused(ConfigError, "--data: expected the file of", *server, "--task", "words", "--data", "a,b,c")
        columns = ("--task", "words", "--text-columns", "a,,b")
        refused(ConfigError, "--text-columns: expected different names with commas between them", *server, *columns)
        tickets = (*server, "--task", "tickets", "--data", rows_in(tmp_path))
        refused(ConfigError, "--text-columns: expected 1 or 2 text", *tickets, "--text-columns", "body,lang,verdict")
        refused(ConfigError, "--text-columns: 'verdict' is the label", *tickets, "--text-columns", "body,verdict")
        refused(ConfigError, "--label-column: expected the name of a column, got ''", *tickets, "--label-column", "")
        label = ("--task", "words", "--label-column", "x")
        refused(ConfigError, "--label-column: the task 'words' is a masked_lm task", *server, *label)
        headless = rows_in(tmp_path, "a b c,bug\n" + "d e f,praise\ng h i,bug\n" * 3)
        refused(ConfigError, "its first line looks like a row", *tickets[:-1], headless)
        with pytest.raises(ConfigError, match="expected 1 or 2"):
            init(tmp_path / "no/such/a.yaml", *server, "--text-columns", "tickets=a,b,c")
        assert not (tmp_path / "no").exists()
        refused(DataError, "there is no file 'a.csv'", *server, "--task", "words", "--data", "a.csv,b.csv")
        refused(ConfigError, "--data: expected TASK=VALUE with a task of tickets, ", *server, "--data", "a.csv,b.csv")
        file.write_text("mine")
        with pytest.raises(ConfigError, match=r"FILE: .*a\.yaml exists; overwrite it with --force"):
            init(file, *server)
        assert file.read_text() == "mine"
        init(file, *server, "--force")
        assert configuration.load(file).client.server == address
    assert not list(tmp_path.glob(".a.yaml*"))


def test_a_server_that_knows_its_clients_is_shown_a_token_over_tls(tmp_path):
    def done(*arguments: str) -> None:
        result = CliRunner().invoke(server_app, arguments)
        assert result.exit_code == 0, result.output

    certs, token = tmp_path / "certs", tmp_path / "desk.token"
    done("certs", "init", str(certs))
    done("clients", "add", "desk", "--task", "tickets", "--token-file", str(token), "--runs-dir", str(tmp_path))
    overrides = (
        f"security.tls.certificate={certs}/server.pem",
        f"security.tls.key={certs}/server.key",
        "security.authentication=true",
        f"server.runs_dir={tmp_path}",
    )
    file, trust = tmp_path / "desk.yaml", ("--tls-ca", str(certs / "ca.pem"))
    with serving(tmp_path, *overrides) as address:
        with pytest.raises(UnavailableError, match="--tls-ca"):
            init(file, "--server", address, "--token-file", str(token))
        with pytest.raises(UnauthenticatedError, match="--token-file"):
            init(file, "--server", address, *trust)
        said = init(file, "--server", address, *trust, "--token-file", str(token), "--data", rows_in(tmp_path))
        assert "doesn't let desk have scores, words" in said
        config = configuration.load(file)
        assert list(config.tasks) == ["tickets"]
        assert (config.client.token_file, config.client.tls_ca) == (token, certs / "ca.pem")
        result = CliRunner().invoke(doctor_app, ["--config", str(file), "--client-id", "desk"])
        assert "the server has tickets with the same labels, and accepts desk for it" in result.output


def test_a_type_that_is_not_built_in_is_left_to_be_named():
    table = Columns({"text": ["some words", "other words"], "grade": ["low", "high"]})
    task = described(ServerTask("t", "Ordinal", ("low", "high")), table)
    assert (task.type, task.label_column, task.metrics) == ("your_module:Ordinal", "grade", ())
    with pytest.raises(ConfigError, match="--text-columns: needed for the task 't', whose file has the columns id"):
        described(ServerTask("t", "regression", ()), Columns({"id": ["1", "2"]}), label_column="id")
