"""Clients with a configuration file of their own: how the launcher starts them, and their server's address."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmtl_client import Client
from fedmtl_core import config as configuration
from fedmtl_core.config import LocalClient
from fedmtl_core.errors import ConfigError
from fedmtl_local.client_options import options_of, require_own_files

OWN_TASK = "own: {type: classification, labels: [x, y], text_columns: [t], label_column: l}"
OWN = "tasks: {sst2: {data: {builtin: sst2}}}\nclient: {server: 'localhost:1234'}\n"


def test_a_client_with_its_own_file_is_started_with_it_and_with_the_overrides_that_it_reads(tmp_path):
    client = LocalClient(client_id="a", task="sst2", config=Path("a.yaml"), token_file=Path("a.token"))
    overrides = [
        "training.num_rounds=3",
        "training.device=cpu",
        "client.num_threads=1",
        "tasks.sst2.val_samples=5",
        "tasks.stsb.val_samples=5",
        "sharing.layers=1",
        "security.insecure=true",
    ]
    assert options_of(client, "localhost:1", Path("f.yaml"), overrides) == [
        *("--config", "a.yaml"),
        *("--set", "training.device=cpu", "--set", "client.num_threads=1"),
        *("--set", "tasks.sst2.val_samples=5", "--set", "security.insecure=true"),
        *("--client-id", "a", "--task", "sst2", "--server", "localhost:1", "--token-file", "a.token"),
    ]


def test_a_client_without_its_own_file_is_started_with_the_launchers():
    client = LocalClient(client_id="a", tasks=["sst2", "stsb"], shard="1/2")
    assert options_of(client, "localhost:1", Path("f.yaml"), ["training.num_rounds=3"]) == [
        *("--config", "f.yaml", "--set", "training.num_rounds=3"),
        *("--client-id", "a", "--task", "sst2", "--task", "stsb", "--shard", "1/2", "--server", "localhost:1"),
    ]


def require_own(tmp_path: Path, *, task: str = "sst2", config: str = "a.yaml", overrides: tuple[str, ...] = ()) -> None:
    """Check the file of a client of a launcher's file."""
    (tmp_path / "f.yaml").write_text(
        f"tasks: {{sst2: {{data: {{builtin: sst2}}}}, stsb: {{data: {{builtin: stsb}}}}, {OWN_TASK}}}\n"
        f"clients: [{{client_id: a, task: {task}, config: {tmp_path}/{config}}}]\n"
    )
    require_own_files(configuration.load(tmp_path / "f.yaml"), tmp_path / "f.yaml", overrides)


def test_clients_own_files_are_looked_at_before_anything_starts(tmp_path):
    path = tmp_path / "a.yaml"
    with pytest.raises(ConfigError, match=r"clients: config of 'a': .*a\.yaml: can't read the configuration"):
        require_own(tmp_path)
    path.write_text(OWN)
    require_own(tmp_path, overrides=("tasks.stsb.labels=[]",))
    with pytest.raises(ConfigError, match=r"config of 'a': .*a\.yaml has the tasks sst2, and lacks 'stsb'"):
        require_own(tmp_path, task="stsb")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (OWN_TASK.replace("[x, y]", "[y, x]"), "task own: the server has the labels x, y; this client has y, x"),
        ("own: {type: regression, text_columns: [t], label_column: l}", "this client has regression"),
    ],
)
def test_clients_own_files_define_tasks_as_the_launchers_file_does(tmp_path, section, message):
    (tmp_path / "a.yaml").write_text(f"tasks: {{{OWN_TASK}}}\n")
    require_own(tmp_path, task="own")
    (tmp_path / "a.yaml").write_text(f"tasks: {{{section}}}\n")
    with pytest.raises(ConfigError, match=rf"clients: config of 'a': .*a\.yaml: .*{message}"):
        require_own(tmp_path, task="own")


def test_a_clients_own_file_names_no_further_file(tmp_path):
    with pytest.raises(ConfigError, match=r"config of 'a': .*f\.yaml is the launcher's own file; leave `config` out"):
        require_own(tmp_path, config="f.yaml")
    (tmp_path / "a.yaml").write_text(OWN + "clients: [{client_id: a, task: sst2, config: b.yaml}]\n")
    with pytest.raises(ConfigError, match=r"a\.yaml names yet another file for the client; remove `config` there"):
        require_own(tmp_path)


def test_a_client_with_its_own_file_is_not_started_with_the_launchers(tmp_path):
    (tmp_path / "f.yaml").write_text(OWN + "clients: [{client_id: a, task: sst2, config: own/a.yaml}]\n")
    with pytest.raises(ConfigError, match=r"f\.yaml says that 'a' has its own .*start the client with --config own/a"):
        Client(tmp_path / "f.yaml", client_id="a")


def test_rows_that_a_client_uses_are_said_in_its_own_file_alone():
    with pytest.raises(ValueError, match=r"`shard` belongs in the client's own file, which `config` names: a\.yaml"):
        LocalClient(client_id="a", task="sst2", shard="1/2", config=Path("a.yaml"))


def test_a_client_connects_to_the_server_that_its_file_names_unless_it_is_given_another(tmp_path):
    (tmp_path / "a.yaml").write_text(OWN)
    assert Client(tmp_path / "a.yaml", task="sst2")._server == "localhost:1234"
    assert Client(tmp_path / "a.yaml", task="sst2", server="localhost:5")._server == "localhost:5"
    assert Client(task="sst2")._server == "127.0.0.1:50051"
    with pytest.raises(ConfigError, match=r"client\.server: expected HOST:PORT, such as 127\.0\.0\.1:50051, got 'x'"):
        configuration.load(None, ["client.server=x"])
