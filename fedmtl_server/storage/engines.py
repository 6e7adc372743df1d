"""Connections to databases: URLs and their passwords, SQLite's modes, PostgreSQL."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fedmtl_core.errors import StoreError

_EXPECTED = "expected sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
_SECRETS = ("password", "sslpassword")
"""Parts of a URL's query that are passwords."""
_NEEDS_PASSWORD = (
    "a run's folder keeps no password: give it in PGPASSWORD, in ~/.pgpass or in the URL (store.url, --url)"
)
_WAIT_S = 30.0
"""How long to wait for a database that another process has locked."""


def without_password(url: str) -> str:
    """Return a database's URL without its password, so that it may be stored and shown.

    A process that connects with it leaves the password to PostgreSQL's client library, which reads PGPASSWORD and
    ~/.pgpass.

    Raises:
        StoreError: the text isn't a URL.
    """
    parsed = _url(url)
    kept = parsed.difference_update_query(_SECRETS)
    if parsed.password is None and kept.query == parsed.query:
        return url
    parts = (kept.drivername, kept.username, None, kept.host, kept.port, kept.database, kept.query)
    return sa.URL.create(*parts).render_as_string()


def connect(database: str | Path, *, create: bool) -> tuple[sa.Engine, str]:
    """Return an engine for a database, and the database's display name, without its password.

    A transaction on SQLite begins with the statement in the execution option `sqlite_begin`, by default `BEGIN`.

    Args:
        database: `sqlite:///PATH`, `postgresql+psycopg://…`, or the path of an SQLite file.
        create: whether to make an SQLite file that doesn't exist; without it, that is an error.

    Raises:
        StoreError: the URL is wrong, the file doesn't exist, or psycopg is not installed.
    """
    url = _parse(database)
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        return _sqlite(url, path, create), str(path)
    name = url.difference_update_query(_SECRETS).render_as_string(hide_password=True)
    return _postgresql(url, name), name


def explain(error: Exception) -> str:
    """Describe a database error in one line; for a missing password also where to give it."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    needs_password = getattr(getattr(cause, "pgconn", None), "needs_password", False)
    return " ".join(str(cause).split()) + (f"; {_NEEDS_PASSWORD}" if needs_password else "")


def _parse(database: str | Path) -> sa.URL:
    if isinstance(database, Path):
        return sa.URL.create("sqlite", database=str(database))
    url = _url(database)
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StoreError(f"{url.drivername}: can't hold a history: {_EXPECTED}")
    if url.database in (None, "", ":memory:") or url.query or url.host:
        raise StoreError(f"{url.render_as_string()}: a history in SQLite must be a file: expected sqlite:///PATH")
    return url


def _url(text: str) -> sa.URL:
    try:
        return sa.make_url(text)
    except (SQLAlchemyError, ValueError):  # the text isn't shown, because it may contain a password
        raise StoreError(f"not a database URL: {_EXPECTED}") from None


def _postgresql(url: sa.URL, name: str) -> sa.Engine:
    # Prepared statements belong to a connection, and a pooler in transaction mode changes it between transactions.
    options: dict[str, int | None] = {"prepare_threshold": None}
    if "connect_timeout" not in url.query:
        options["connect_timeout"] = int(_WAIT_S)
    try:
        # pool_pre_ping: a connection that was lost between two rounds is replaced.
        return sa.create_engine(url, connect_args=options, pool_pre_ping=True, json_serializer=_to_json)
    except ImportError as error:
        raise StoreError(f"{name}: needs psycopg: pip install 'fedmtl[postgresql]' ({error})") from None
    except (SQLAlchemyError, ValueError) as error:
        raise StoreError(f"{name}: {explain(error)}") from None


def _sqlite(url: sa.URL, path: Path, create: bool) -> sa.Engine:
    if not create and not path.is_file():
        raise StoreError(f"{path}: there is no such file")
    mode = "rwc" if create else "rw"
    if not create and not os.access(path.parent, os.W_OK) and not _is_filled(path.with_name(path.name + "-wal")):
        mode = "ro&immutable=1"  # without this mode SQLite would create files beside it, to coordinate with writers

    def connect() -> sqlite3.Connection:
        uri = f"file:{quote(os.path.abspath(path))}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on disk when it returns
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    engine = sa.create_engine(url, creator=connect, json_serializer=_to_json)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:  # the driver would begin too late, and not for statements on tables
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _to_json(value: object) -> str:
    return json.dumps(value, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} can't be stored as JSON")
