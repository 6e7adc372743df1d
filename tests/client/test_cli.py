"""The command line of a client: what it takes from its own configuration."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from fedmtl_client import cli, credentials, data
from fedmtl_client.partition import LabelSkew
from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError

CONFIG = """
tasks: {sst2: {data: {builtin: sst2}}}
client: {token_file: everybodys.token, tls_ca: ca.pem}
clients:
  - {client_id: a, task: sst2, shard: 1/2, token_file: a.token, tls_certificate: a.pem, tls_key: a.key}
  - {client_id: b, task: sst2, shard: 2/2}
"""


class Reached(Exception):
    """As far as a client's own settings go."""


def taken(monkeypatch, tmp_path, *options: str, config: str = CONFIG) -> dict[str, Any]:
    """What a client with these options would use."""
    seen: dict[str, Any] = {}

    def load(config: Config) -> credentials.Credentials:
        seen.update(config.client.model_dump(mode="json", exclude_none=True))
        return credentials.Credentials()

    def load_task_data(spec, source, shard, skew):
        seen.update(shard=shard, skew=skew)
        raise Reached

    monkeypatch.setattr(credentials, "load", load)
    monkeypatch.setattr(data, "load_task_data", load_task_data)
    (tmp_path / "c.yaml").write_text(config)
    arguments = ["--task", "sst2", "--config", str(tmp_path / "c.yaml"), *options]
    result = CliRunner().invoke(cli.app, arguments)
    if not isinstance(result.exception, Reached):
        raise result.exception or AssertionError(result.output)
    return seen


def test_a_client_that_its_configuration_lists_takes_its_shard_and_its_credentials_from_there(monkeypatch, tmp_path):
    seen = taken(monkeypatch, tmp_path, "--client-id", "a")
    assert seen["shard"] == (1, 2)
    assert (seen["token_file"], seen["tls_certificate"], seen["tls_key"]) == ("a.token", "a.pem", "a.key")
    assert seen["tls_ca"] == "ca.pem"

    seen = taken(monkeypatch, tmp_path, "--client-id", "b")
    assert (seen["shard"], seen["token_file"]) == ((2, 2), "everybodys.token")


def test_a_client_that_its_configuration_lists_takes_its_partition_from_there(monkeypatch, tmp_path):
    text = CONFIG.replace("shard:", "partition: {dirichlet: 0.5, seed: 7}, shard:")
    assert taken(monkeypatch, tmp_path, "--client-id", "b", config=text)["skew"] == LabelSkew(0.5, 7)
    assert taken(monkeypatch, tmp_path, "--client-id", "b")["skew"] is None
    assert taken(monkeypatch, tmp_path, "--client-id", "c", config=text)["skew"] is None


def test_a_client_that_is_not_listed_uses_all_rows(monkeypatch, tmp_path):
    seen = taken(monkeypatch, tmp_path, "--client-id", "c")
    assert (seen["shard"], seen["token_file"]) == ((1, 1), "everybodys.token")


def test_options_win_over_what_the_configuration_lists(monkeypatch, tmp_path):
    options = ("--client-id", "a", "--shard", "3/4", "--token-file", "x.token", "--set", "client.tls_key=x.key")
    seen = taken(monkeypatch, tmp_path, *options)
    assert (seen["shard"], seen["token_file"]) == ((3, 4), "x.token")
    assert (seen["tls_certificate"], seen["tls_key"]) == ("a.pem", "x.key")


def test_a_client_whose_configuration_gives_it_another_task_is_told_so(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"^task: in `clients` of .*c\.yaml, 'a' has the task 'sst2', got 'qqp'"):
        taken(monkeypatch, tmp_path, "--client-id", "a", "--task", "qqp")
