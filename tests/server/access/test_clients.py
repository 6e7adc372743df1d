"""The clients in a database."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, StoreError, UnauthenticatedError
from fedmtl_server.access.clients import ClientRegistry, database_of
from fedmtl_server.access.identities import Credentials, Identity
from fedmtl_server.storage import database as database_module
from fedmtl_server.storage.history import History
from fedmtl_server.storage.schema import CLIENTS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "clients.sqlite"


@pytest.fixture
def registry(path):
    with contextlib.closing(ClientRegistry.open(path)) as registry:
        yield registry


def rows(path: Path) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT name, tasks, token_sha256 FROM known_clients ORDER BY name").fetchall()


def test_a_client_that_was_added_is_known_by_its_token_to_another_process(registry, path):
    token = registry.add("alice", ["sst2", "qqp"], with_token=True)
    assert token is not None
    with contextlib.closing(ClientRegistry.open(path, create=False)) as server:
        assert server.known().identify(Credentials(token=token)) == Identity("alice", frozenset({"sst2", "qqp"}))


def test_of_a_token_its_sha256_alone_is_on_disk(registry, path):
    token = registry.add("alice", ["sst2"], with_token=True)
    secret = token.rpartition(".")[2]
    registry.close()
    assert rows(path) == [("alice", '["sst2"]', hashlib.sha256(token.encode()).hexdigest())]
    for file in path.parent.iterdir():
        assert secret.encode() not in file.read_bytes()


def test_a_client_with_a_certificate_has_no_token(registry, path):
    assert registry.add("bob", None, with_token=False) is None
    assert rows(path) == [("bob", None, None)]
    assert registry.known().identify(Credentials("bob")) == Identity("bob", None)


def test_a_client_without_tasks_may_watch(registry):
    registry.add("dashboard", [], with_token=False)
    assert registry.known().identify(Credentials("dashboard")) == Identity("dashboard", frozenset())


def test_a_revoked_client_is_nobody_and_stays_listed(registry):
    before = time.time() * 1000 - 1
    token = registry.add("alice", ["sst2"], with_token=True)
    assert registry.revoke("alice")
    assert not registry.revoke("alice")
    with pytest.raises(UnauthenticatedError, match="client 'alice' was revoked"):
        registry.known().identify(Credentials(token=token))
    (record,) = registry.records()
    assert (record.name, record.tasks, record.proof) == ("alice", ("sst2",), "token")
    assert before < record.added_at_unix_ms <= record.revoked_at_unix_ms < time.time() * 1000 + 1


def test_a_client_with_a_token_comes_back_with_a_new_one(registry):
    old = registry.add("alice", ["sst2"], with_token=True)
    with pytest.raises(ConfigError, match="client 'alice' exists already"):
        registry.add("alice", ["qqp"], with_token=True)
    registry.revoke("alice")
    new = registry.add("alice", ["qqp"], with_token=True)
    assert registry.known().identify(Credentials(token=new)) == Identity("alice", frozenset({"qqp"}))
    with pytest.raises(UnauthenticatedError):
        registry.known().identify(Credentials(token=old))


def test_a_revoked_certificates_name_is_not_given_again(registry):
    """The certificate that was stolen would be let in with it."""
    registry.add("bob", ["sst2"], with_token=False)
    registry.revoke("bob")
    with pytest.raises(ConfigError, match="its certificates would be valid again; choose another name"):
        registry.add("bob", ["sst2"], with_token=False)
    registry.add("bob", ["sst2"], with_token=True)
    with pytest.raises(UnauthenticatedError, match="was added with a token"):
        registry.known().identify(Credentials("bob"))


@pytest.mark.parametrize(("name", "tasks"), [("a b", ["sst2"]), ("", ["sst2"]), ("x" * 65, ["sst2"]), ("a", ["*"])])
def test_a_name_that_is_none_is_refused(registry, name, tasks):
    with pytest.raises(ConfigError, match="expected 1 to 64 letters"):
        registry.add(name, tasks, with_token=True)
    assert registry.records() == []


def test_revoking_nobody_is_an_error(registry):
    with pytest.raises(ConfigError, match="no client 'alice'"):
        registry.revoke("alice")


def test_a_database_of_the_time_before_clients_learns_of_them(path, monkeypatch, tmp_path):
    """What the first schema's tables hold stays."""
    path.parent.mkdir()
    older = tmp_path / "migrations"
    (older / "versions").mkdir(parents=True)
    (older / "env.py").write_text((database_module.MIGRATIONS / "env.py").read_text())
    first = database_module.MIGRATIONS / "versions" / "0001_history.py"
    (older / "versions" / first.name).write_text(first.read_text())
    with monkeypatch.context() as patch:
        patch.setattr(database_module, "MIGRATIONS", older)
        History.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert "runs" in tables
    assert "known_clients" not in tables
    with contextlib.closing(ClientRegistry.open(path)) as registry:
        registry.add("alice", ["sst2"], with_token=True)
        assert [record.name for record in registry.records()] == ["alice"]


def test_clients_are_where_the_store_is_or_beside_the_runs(tmp_path):
    url = "postgresql+psycopg://user@host/name"
    assert database_of(Config.model_validate({"store": {"url": url}})) == url
    config = Config.model_validate({"server": {"runs_dir": str(tmp_path)}})
    assert database_of(config) == tmp_path / "clients.sqlite"


def test_a_database_that_is_missing_is_not_made_to_be_read(path):
    with pytest.raises(StoreError, match="no such file"):
        ClientRegistry.open(path, create=False)
    assert not path.exists()


def test_known_clients_are_equal_as_long_as_nothing_changes(registry):
    registry.add("alice", ["sst2"], with_token=True)
    before = registry.known()
    assert registry.known() == before
    registry.revoke("alice")
    assert registry.known() != before


def test_the_table_is_the_migrations(registry, path):
    columns = {
        column["name"] for column in sa.inspect(sa.create_engine(f"sqlite:///{path}")).get_columns("known_clients")
    }
    assert columns == set(CLIENTS.c.keys())
