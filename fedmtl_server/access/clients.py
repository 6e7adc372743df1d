"""The database of a server's clients: their tasks, and when they were added and revoked.

It is the database of `store.url`, or `clients.sqlite` beside the runs' folders, because clients outlive a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, InvalidRequestError, StoreError
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.runtime.clock import now_ms
from fedmtl_server.access.identities import Client, KnownClients, digest_of, make_token
from fedmtl_server.storage.database import Database
from fedmtl_server.storage.schema import CLIENTS

FILE_NAME = "clients.sqlite"
"""The name of the clients' database in the folder of runs."""


@dataclass(frozen=True)
class ClientRecord:
    """One client, and when it was added and revoked."""

    name: str
    tasks: tuple[str, ...] | None
    """The tasks that the client may take part in; None for all tasks."""
    proof: str
    """How the client authenticates: `token` or `certificate`."""
    added_at_unix_ms: int
    revoked_at_unix_ms: int | None


class ClientRegistry:
    """The clients in one database. Its methods can be called from any thread and by several processes.

    Raises:
        StoreError: every method raises it if the database can't be read or written.
    """

    def __init__(self, database: Database):
        self._database = database

    @property
    def name(self) -> str:
        """The database's name for messages, without its password."""
        return self._database.name

    @classmethod
    def open(cls, database: str | Path, *, create: bool = True) -> ClientRegistry:
        """Connect to a database; see `Database.open`."""
        if create and isinstance(database, Path):
            try:
                database.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"can't create {database.parent}: {error.strerror or error}") from None
        return cls(Database.open(database, create=create))

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def add(self, name: str, tasks: Sequence[str] | None, *, with_token: bool) -> str | None:
        """Add a client.

        Args:
            name: the client id.
            tasks: the tasks that the client may take part in; None for all tasks.
            with_token: whether the client gets a token; otherwise it authenticates with a certificate of this name.

        Returns:
            The token, which is not stored; None without a token.

        Raises:
            ConfigError: a name is not an identifier, the client exists already, or it was revoked and its certificates
                would be valid again.
        """
        for what, value in [("a client's name", name), *(("a task", task) for task in tasks or ())]:
            _require_identifier(what, value)
        token = make_token(name) if with_token else None
        row = {
            "name": name,
            "tasks": None if tasks is None else sorted(set(tasks)),
            "token_sha256": digest_of(token).hex() if token else None,
            "added_at_unix_ms": now_ms(),
            "revoked_at_unix_ms": None,
        }
        with self._database.transaction(f"add client {name}") as connection:
            before = connection.execute(CLIENTS.select().where(CLIENTS.c.name == name)).mappings().first()
            if before is not None:
                _require_replaceable(before, with_token)
                connection.execute(CLIENTS.delete().where(CLIENTS.c.name == name))
            connection.execute(CLIENTS.insert(), [row])
        return token

    def revoke(self, name: str) -> bool:
        """Revoke a client.

        Returns:
            Whether the client was valid until now; False if it was revoked already.

        Raises:
            ConfigError: the database has no such client.
        """
        with self._database.transaction(f"revoke client {name}") as connection:
            known = connection.execute(sa.select(CLIENTS.c.name).where(CLIENTS.c.name == name)).first()
            if known is None:
                raise ConfigError(f"NAME: no client {name!r} in {self.name}; see `fedmtl-server clients list`")
            live = (CLIENTS.c.name == name) & CLIENTS.c.revoked_at_unix_ms.is_(None)
            revoked = connection.execute(CLIENTS.update().where(live).values(revoked_at_unix_ms=now_ms()))
            return bool(revoked.rowcount)

    def records(self) -> list[ClientRecord]:
        """Return all clients in the order of their names, including revoked clients."""
        return [
            ClientRecord(
                name=row["name"],
                tasks=None if row["tasks"] is None else tuple(row["tasks"]),
                proof="token" if row["token_sha256"] else "certificate",
                added_at_unix_ms=row["added_at_unix_ms"],
                revoked_at_unix_ms=row["revoked_at_unix_ms"],
            )
            for row in self._rows()
        ]

    def known(self) -> KnownClients:
        """Return the current clients, to compare callers with."""
        return KnownClients(
            Client(
                name=row["name"],
                tasks=None if row["tasks"] is None else tuple(row["tasks"]),
                token_digest=bytes.fromhex(row["token_sha256"]) if row["token_sha256"] else None,
                revoked=row["revoked_at_unix_ms"] is not None,
            )
            for row in self._rows()
        )

    def _rows(self) -> list[sa.RowMapping]:
        return self._database.select(CLIENTS.select().order_by(CLIENTS.c.name))


def database_of(config: Config) -> str | Path:
    """Return the database of clients of a server with this configuration: a URL or a path."""
    return config.store.url or (config.server.runs_dir / FILE_NAME).absolute()


def _require_replaceable(before: sa.RowMapping, with_token: bool) -> None:
    name = before["name"]
    if before["revoked_at_unix_ms"] is None:
        raise ConfigError(
            f"NAME: client {name!r} exists already; for another token or other tasks, revoke it and add it again"
        )
    if not with_token:
        raise ConfigError(
            f"NAME: client {name!r} was revoked, and its certificates would be valid again; choose another name, such "
            f"as {name}-2"
        )


def _require_identifier(what: str, value: str) -> None:
    try:
        require_identifier(what, value)
    except InvalidRequestError as error:
        raise ConfigError(str(error)) from None
