"""A database with FedMTL's tables, whoever reads and writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from fedmtl_core.errors import StoreError
from fedmtl_server.storage.database import Database
from fedmtl_server.storage.schema import CLIENTS, METADATA

ROW = {"name": "alice", "tasks": ["sst2"], "token_sha256": None, "added_at_unix_ms": 1, "revoked_at_unix_ms": None}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(tmp_path / "clients.sqlite")
    yield database
    database.close()


def names(database: Database) -> list[str]:
    return [row["name"] for row in database.select(sa.select(CLIENTS.c.name).order_by(CLIENTS.c.name))]


def test_a_transaction_is_committed_at_its_end_and_not_before(database, tmp_path):
    other = Database.open(tmp_path / "clients.sqlite", create=False)
    with database.transaction("add a client") as connection:
        connection.execute(CLIENTS.insert(), [ROW])
        assert names(other) == []
    assert names(other) == ["alice"]
    other.close()


def test_a_transaction_that_fails_leaves_nothing_and_says_what_it_was_to_do(database):
    with (
        pytest.raises(StoreError, match=r"clients\.sqlite: can't add two clients: UNIQUE constraint failed"),
        database.transaction("add two clients") as connection,
    ):
        connection.execute(CLIENTS.insert(), [ROW])
        connection.execute(CLIENTS.insert(), [ROW])
    assert names(database) == []


def test_a_transaction_that_is_given_up_leaves_nothing_and_keeps_its_error(database):
    with pytest.raises(KeyError), database.transaction("add a client") as connection:
        connection.execute(CLIENTS.insert(), [ROW])
        raise KeyError("no")
    assert names(database) == []


def test_a_query_that_cannot_be_read_names_the_database(database):
    with pytest.raises(StoreError, match=r"clients\.sqlite: can't read: no such table: nowhere"):
        database.select(sa.text("SELECT * FROM nowhere"))


def test_the_schema_is_told_without_a_change(tmp_path):
    path = tmp_path / "clients.sqlite"
    path.touch()
    schema, newest = Database.schema_of(path)
    assert (schema, path.read_bytes()) == (None, b"")
    Database.open(path).close()
    assert Database.schema_of(path) == (newest, newest)


def test_one_schema_has_the_tables_of_runs_and_of_clients(database):
    with database.transaction("look") as connection:
        tables = set(sa.inspect(connection).get_table_names())
    assert tables == {"fedmtl_version", *METADATA.tables}
