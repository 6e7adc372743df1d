"""A database with FedMTL's tables: its transactions, and the migrations that bring its tables up to date.

SQLite in a file, or PostgreSQL for many runs in one place.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from fedmtl_core.errors import StoreError
from fedmtl_server.storage.engines import connect, explain
from fedmtl_server.storage.schema import METADATA, VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

MIGRATIONS = Path(__file__).parent / "migrations"

_MIGRATING = threading.Lock()
"""Alembic's environment is shared by the whole process."""
_MIGRATION_LOCK = 0x_FED_317
"""Key of the PostgreSQL advisory lock that the migrating process holds."""


class Database:
    """One database. Its methods may be called from any thread.

    Raises:
        StoreError: from every method, when the database can't be reached, read or written. A transaction that fails
            leaves nothing behind.
    """

    def __init__(self, engine: sa.Engine, name: str):
        self.name = name
        """Path or URL, without its password."""
        self._engine = engine
        self._writer = engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")

    @classmethod
    def open(cls, database: str | Path, *, create: bool = True) -> Database:
        """Connect to a database, and bring its tables up to date.

        Args:
            database: `sqlite:///PATH`, `postgresql+psycopg://…`, or the path of an SQLite file.
            create: whether to make tables where there are none. Without it, their absence is an error, and a database
                that is up to date is only read.

        Raises:
            StoreError: it can't be reached, read or written, was written by a newer FedMTL, or is another program's.
        """
        opened = cls(*connect(database, create=create))
        try:
            opened._migrate(create)
        except BaseException:
            opened.close()
            raise
        return opened

    @classmethod
    def schema_of(cls, database: str | Path) -> tuple[str | None, str]:
        """Return the revision of a database's tables (None if it has none of FedMTL's) and the newest revision.

        Nothing is written.

        Raises:
            StoreError: it can't be reached or read, was written by a newer FedMTL, or is another program's.
        """
        opened = cls(*connect(database, create=False))
        try:
            schema, known = opened._find_schema()
        finally:
            opened.close()
        return schema, known[0]

    def close(self) -> None:
        """Close all connections."""
        with self._errors("close"):
            self._engine.dispose()

    @contextmanager
    def transaction(self, what: str) -> Iterator[sa.Connection]:
        """Open a transaction for writing, committed at the end of the `with` block.

        Args:
            what: the action, for error messages such as "can't {what}".
        """
        with self._errors(what), self._writer.begin() as connection:
            yield connection

    def select(self, query: sa.Executable) -> list[sa.RowMapping]:
        """Return the rows of a query."""
        with self._errors("read"), self._engine.connect() as connection:
            return list(connection.execute(query).mappings())

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        # ValueError: a column's value isn't JSON; OverflowError: a number beyond 64 bits.
        except (SQLAlchemyError, sqlite3.Error, OSError, OverflowError, ValueError) as error:
            raise StoreError(f"{self.name}: can't {what}: {explain(error)}") from error

    def _migrate(self, create: bool) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from alembic import command

        config = _alembic_config()
        schema, known = self._find_schema()
        if schema is None and not create:
            raise StoreError(f"{self.name} holds no history")
        if create or schema != known[0]:
            self._use_write_ahead_log()
        if schema == known[0]:
            return
        with _MIGRATING, self.transaction("bring its tables up to date") as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")  # from the current revision: another process may have migrated first

    def _find_schema(self) -> tuple[str | None, list[str]]:
        """Return the revision of the tables (None without tables) and the known revisions, newest first."""
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from alembic.script import ScriptDirectory

        known = [one.revision for one in ScriptDirectory.from_config(_alembic_config()).walk_revisions()]
        with self._errors("read"), self._engine.connect() as connection:
            tables = sa.inspect(connection).get_table_names()  # first: another process may be making them
            schema = _schema(connection)
        if schema is not None and schema not in known:
            raise StoreError(
                f"{self.name} was written by a newer FedMTL (schema {schema}; this one knows up to {known[0]}); "
                "update FedMTL"
            )
        strange = sorted(set(tables) & set(METADATA.tables))
        if schema is None and strange:
            raise StoreError(f"{self.name} isn't a history: its tables {', '.join(strange)} belong to another program")
        return schema, known

    def _use_write_ahead_log(self) -> None:
        """Use SQLite's write-ahead log if the file system supports it, so that readers don't block the writer."""
        if self._engine.dialect.name == "sqlite":
            with self._errors("write"):
                raw = self._engine.raw_connection()
                try:
                    raw.cursor().execute("PRAGMA journal_mode = WAL")
                finally:
                    raw.close()


def _alembic_config() -> AlembicConfig:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _schema(connection: sa.Connection) -> str | None:
    """Return the revision of a database's tables; None if it has none of FedMTL's tables."""
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()
