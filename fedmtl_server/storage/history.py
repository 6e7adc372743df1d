"""The history of runs: which rounds there were, what each came to, and which updates counted; in a database.

SQLite beside the checkpoints, or PostgreSQL for many runs in one place. A round's transaction is its commit point:
files are written before it and cleaned up after it, and what the database says is what happened.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from fedmtl_core.errors import StoreError
from fedmtl_core.tasks.plan import Purpose

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

FILE_NAME = "history.sqlite"
"""The history's name in a run's folder."""

RunState = Literal["running", "finished"]
RoundOutcome = Literal["open", "committed", "failed", "rolled_back"]
UpdateOutcome = Literal["counted", "discarded", "refused", "rolled_back"]

METADATA = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)
VERSION_TABLE = "fedmtl_version"
"""Holds the schema's revision; named so that another program's migrations in the same database aren't ours."""
MIGRATIONS = Path(__file__).parent / "migrations"

_EXPECTED = "expected sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
_SECRETS = ("password", "sslpassword")
"""Parts of a URL's query that are passwords."""
_NEEDS_PASSWORD = (
    "a run's folder keeps no password: give it in PGPASSWORD, in ~/.pgpass or in the URL (store.url, --url)"
)
_WAIT_S = 30.0
"""How long to wait for a database that another process holds."""
_MIGRATING = threading.Lock()
"""Alembic's environment is one for the whole process."""
_MIGRATION_LOCK = 0x_FED_317
"""PostgreSQL's advisory lock of whoever migrates."""


def _json() -> sa.JSON:
    return sa.JSON(none_as_null=True)


def _run_id(*, primary_key: bool) -> sa.Column[str]:
    runs = sa.ForeignKey("runs.run_id", ondelete="CASCADE")
    return sa.Column("run_id", sa.Text, runs, primary_key=primary_key, nullable=False)


RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("created_at_unix_ms", sa.BigInteger, nullable=False),
    sa.Column("run_dir", sa.Text, nullable=False),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("tasks", _json(), nullable=False),
    sa.Column("num_rounds", sa.BigInteger, nullable=False),
    sa.Column("config", _json(), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("finished_at_unix_ms", sa.BigInteger),
    sa.Index(None, "created_at_unix_ms"),
)

ROUNDS = sa.Table(
    "rounds",
    METADATA,
    _run_id(primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("opened_at_unix_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_at_unix_ms", sa.BigInteger),
    sa.Column("cohort", _json(), nullable=False),
    sa.Column("report", _json()),
    sa.Column("checkpoint", _json()),
)

UPDATES = sa.Table(
    "updates",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    _run_id(primary_key=False),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("client_id", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("base_round", sa.BigInteger, nullable=False),
    sa.Column("update_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("num_examples", sa.BigInteger, nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_metrics", _json(), nullable=False),
    sa.Column("trained_metrics", _json(), nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("code", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Index(None, "run_id", "round"),
    sqlite_autoincrement=True,
)
COUNTED_ONCE = sa.Index(
    "uq_updates_counted_once",
    UPDATES.c.run_id,
    UPDATES.c.client_id,
    UPDATES.c.update_id,
    unique=True,
    sqlite_where=UPDATES.c.outcome == "counted",
    postgresql_where=UPDATES.c.outcome == "counted",
)
"""No update counts twice: the database itself holds it."""

METRICS = sa.Table(
    "metrics",
    METADATA,
    _run_id(primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("num_clients", sa.BigInteger, nullable=False),
)

CLIENTS = sa.Table(
    "known_clients",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("tasks", _json()),
    sa.Column("token_sha256", sa.Text),
    sa.Column("added_at_unix_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_at_unix_ms", sa.BigInteger),
)
"""Not of one run: `clients.py` reads and writes it."""


@dataclass(frozen=True)
class RunRecord:
    """One run."""

    run_id: str
    created_at_unix_ms: int
    run_dir: str
    base_model: str
    tasks: tuple[str, ...]
    num_rounds: int
    """Rounds of training."""
    config: Mapping[str, Any]
    """The configuration as used, as JSON has it."""
    state: RunState = "running"
    finished_at_unix_ms: int | None = None


@dataclass(frozen=True)
class RoundRecord:
    """One round of a run. Round 0 is the model before the first."""

    run_id: str
    round: int
    purpose: Purpose
    outcome: RoundOutcome
    opened_at_unix_ms: int
    ended_at_unix_ms: int | None = None
    cohort: Mapping[str, str] = field(default_factory=dict)
    """Task by client id, in the order of folding."""
    report: Mapping[str, Any] | None = None
    """`RoundReport.to_dict()`, once it has ended."""
    checkpoint: Mapping[str, str] | None = None
    """SHA-256 in hexadecimal by scope, of the model it made; None if it made none."""


@dataclass(frozen=True)
class UpdateRecord:
    """One update, and what became of it."""

    round: int
    """In which it counted or was refused."""
    client_id: str
    task: str
    base_round: int
    update_id: str
    kind: str
    num_examples: int
    num_bytes: int
    received_metrics: Mapping[str, float]
    trained_metrics: Mapping[str, float]
    outcome: UpdateOutcome
    code: str = ""
    """With `reason`: why it was refused or discarded."""
    reason: str = ""


@dataclass(frozen=True)
class MetricRecord:
    """One metric of one model, as the clients of one task measured it."""

    round: int
    """Of the model that was measured; 0 is the one before the first round."""
    task: str
    name: str
    value: float
    num_clients: int


class History:
    """Runs in one database. Its methods may be called from any thread; one process writes a run.

    Raises:
        StoreError: from every method, when the database can't be reached, read or written; nothing of what was
            to be written is there then.
    """

    def __init__(self, engine: sa.Engine, name: str):
        self.name = name
        """The database in words, without its password."""
        self._engine = engine
        self._writer = engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")

    @classmethod
    def open(cls, database: str | Path, *, create: bool = True) -> History:
        """Connect to a database, and bring its tables up to date.

        Args:
            database: `sqlite:///PATH`, `postgresql+psycopg://…`, or an SQLite file's path.
            create: make the history where there is none; otherwise that is an error, and one that is up to date
                is only read.

        Raises:
            StoreError: it can't be reached, read or written, or was written by a newer FedMTL.
        """
        engine, name = _connect(database, create)
        history = cls(engine, name)
        try:
            history._migrate(create)
        except BaseException:
            history.close()
            raise
        return history

    @classmethod
    def schema_of(cls, database: str | Path) -> tuple[str | None, str]:
        """The revision of a database's tables, None if it has none of ours yet, and the one that is needed.

        Nothing is written.

        Raises:
            StoreError: it can't be reached or read, was written by a newer FedMTL, or is another program's.
        """
        history = cls(*_connect(database, create=False))
        try:
            schema, known = history._find_schema()
        finally:
            history.close()
        return schema, known[0]

    def close(self) -> None:
        """Let go of the database."""
        with self._errors("close"):
            self._engine.dispose()

    # What is written: each method is one transaction.

    def begin_run(self, run: RunRecord, checkpoint: Mapping[str, str]) -> None:
        """Write down a new run and its round 0.

        Args:
            run: not known here yet.
            checkpoint: of the model before the first round; digest by scope.
        """
        created = run.created_at_unix_ms
        start = RoundRecord(run.run_id, 0, "train", "committed", created, created, checkpoint=checkpoint)
        with self._write(f"begin run {run.run_id}") as connection:
            if _has_run(connection, run.run_id):
                raise StoreError(f"{self.name}: run {run.run_id} is there already")
            connection.execute(RUNS.insert(), [_row(run)])
            connection.execute(ROUNDS.insert(), [_row(start)])

    def open_round(
        self, run_id: str, round_: int, purpose: Purpose, opened_at_unix_ms: int, cohort: Mapping[str, str]
    ) -> None:
        """Write down that a round has opened; one that hadn't been committed is replaced.

        Args:
            cohort: task by client id, in the order of folding.
        """
        record = RoundRecord(run_id, round_, purpose, "open", opened_at_unix_ms, cohort=cohort)
        with self._write(f"open round {round_} of run {run_id}") as connection:
            self._require_run(connection, run_id)
            before = _find_round(connection, run_id, round_)
            if before is not None and before.outcome == "committed":
                raise StoreError(f"{self.name}: round {round_} of run {run_id} is committed, and can't open anew")
            _replace_round(connection, record)

    def end_round(self, run_id: str, record: RoundRecord, updates: Sequence[UpdateRecord]) -> None:
        """Write down how a round ended, with its updates and the metrics of the model it began with.

        What stood there of this round is replaced, and its counted updates are rolled back. A retry of the very
        same end changes nothing.

        Args:
            run_id: the record's.
            record: committed or failed.
            updates: all that counted, were discarded or refused.
        """
        if record.run_id != run_id:
            raise StoreError(f"{self.name}: a round of run {record.run_id} can't end in run {run_id}")
        with self._write(f"end round {record.round} of run {run_id}") as connection:
            self._require_run(connection, run_id)
            before = _find_round(connection, run_id, record.round)
            if before is not None and _same_end(before, record):
                return
            _replace_round(connection, record)
            _roll_back_updates(connection, (UPDATES.c.run_id == run_id) & (UPDATES.c.round == record.round))
            if updates:
                connection.execute(UPDATES.insert(), [_update_row(run_id, update) for update in updates])
            _replace_metrics(connection, run_id, _metrics_of(record))

    def roll_back(self, run_id: str, to_round: int) -> None:
        """Take back every round after one, whose model is the run's again. They may be played anew.

        Rounds that had ended stay, as rolled back, as do their updates; metrics of later models go. A finished run
        is running again.
        """
        with self._write(f"roll back run {run_id} to round {to_round}") as connection:
            self._require_run(connection, run_id)
            later = (ROUNDS.c.run_id == run_id) & (ROUNDS.c.round > to_round)
            connection.execute(ROUNDS.delete().where(later, ROUNDS.c.outcome == "open"))
            ended = connection.execute(ROUNDS.update().where(later).values(outcome="rolled_back"))
            _roll_back_updates(connection, (UPDATES.c.run_id == run_id) & (UPDATES.c.round > to_round))
            connection.execute(METRICS.delete().where(METRICS.c.run_id == run_id, METRICS.c.round > to_round))
            if ended.rowcount:
                unfinished = {"state": "running", "finished_at_unix_ms": None}
                connection.execute(RUNS.update().where(RUNS.c.run_id == run_id).values(unfinished))

    def finish_run(self, run_id: str, at_unix_ms: int) -> None:
        """Write down that a run is over; the end of one that is over already stays."""
        with self._write(f"finish run {run_id}") as connection:
            self._require_run(connection, run_id)
            running = (RUNS.c.run_id == run_id) & (RUNS.c.state == "running")
            finished = {"state": "finished", "finished_at_unix_ms": at_unix_ms}
            connection.execute(RUNS.update().where(running).values(finished))

    def delete_run(self, run_id: str) -> None:
        """Forget a run with all that is known of it; one that isn't known is no error."""
        with self._write(f"delete run {run_id}") as connection:
            connection.execute(RUNS.delete().where(RUNS.c.run_id == run_id))

    # What is read.

    def find_run(self, run_id: str) -> RunRecord | None:
        """One run, or None if it isn't known."""
        rows = self._read(RUNS.select().where(RUNS.c.run_id == run_id))
        return _run_record(rows[0]) if rows else None

    def runs(self) -> list[RunRecord]:
        """All runs, the newest first."""
        order = (RUNS.c.created_at_unix_ms.desc(), RUNS.c.run_id)
        return [_run_record(row) for row in self._read(RUNS.select().order_by(*order))]

    def rounds(self, run_id: str) -> list[RoundRecord]:
        """A run's rounds by number, from round 0 to one that is open."""
        query = ROUNDS.select().where(ROUNDS.c.run_id == run_id).order_by(ROUNDS.c.round)
        return [RoundRecord(**row) for row in self._read(query)]

    def num_committed(self, run_id: str) -> int:
        """How many of a run's rounds of training are committed, round 0 not among them."""
        done = (ROUNDS.c.run_id == run_id, ROUNDS.c.round > 0, ROUNDS.c.purpose == "train")
        query = sa.select(sa.func.count().label("n")).where(*done, ROUNDS.c.outcome == "committed")
        return int(self._read(query)[0]["n"])

    def last_training_round(self, run_id: str) -> int | None:
        """The round after which a run's training ended, once the final model has been evaluated."""
        evaluated = (ROUNDS.c.run_id == run_id, ROUNDS.c.purpose == "evaluate", ROUNDS.c.outcome == "committed")
        rows = self._read(sa.select(ROUNDS.c.round).where(*evaluated).order_by(ROUNDS.c.round.desc()).limit(1))
        return int(rows[0]["round"]) - 1 if rows else None

    def updates(self, run_id: str) -> list[UpdateRecord]:
        """A run's updates, in the order they were written down."""
        query = UPDATES.select().where(UPDATES.c.run_id == run_id).order_by(UPDATES.c.id)
        return [_update_record(row) for row in self._read(query)]

    def metrics(self, run_id: str) -> list[MetricRecord]:
        """The metrics of a run's models, by round, task and name."""
        columns = [METRICS.c[one.name] for one in fields(MetricRecord)]
        query = sa.select(*columns).where(METRICS.c.run_id == run_id).order_by(*columns[:3])
        return [MetricRecord(**row) for row in self._read(query)]

    def last_counted(self, run_id: str) -> dict[str, tuple[str, int]]:
        """By client id, its newest update that counts, and the round it counts in."""
        mine = (UPDATES.c.run_id == run_id) & (UPDATES.c.outcome == "counted")
        newest = sa.select(sa.func.max(UPDATES.c.id)).where(mine).group_by(UPDATES.c.client_id)
        columns = (UPDATES.c.client_id, UPDATES.c.update_id, UPDATES.c.round)
        query = sa.select(*columns).where(UPDATES.c.id.in_(newest)).order_by(UPDATES.c.client_id)
        return {row["client_id"]: (row["update_id"], row["round"]) for row in self._read(query)}

    def has_counted(self, run_id: str, client_id: str, update_id: str) -> bool:
        """Whether an update counts in any round."""
        table = UPDATES.c
        this = (table.run_id == run_id) & (table.client_id == client_id) & (table.update_id == update_id)
        return bool(self._read(sa.select(table.id).where(this & (table.outcome == "counted")).limit(1)))

    # The database.

    def transaction(self, what: str) -> AbstractContextManager[sa.Connection]:
        """A transaction of its own, for a table that isn't the runs'; `what` says what it does, in an error."""
        return self._write(what)

    def select(self, query: sa.Executable) -> list[sa.RowMapping]:
        """A query's rows, likewise."""
        return self._read(query)

    @contextmanager
    def _write(self, what: str) -> Iterator[sa.Connection]:
        with self._errors(what), self._writer.begin() as connection:
            yield connection

    def _read(self, query: sa.Executable) -> list[sa.RowMapping]:
        with self._errors("read"), self._engine.connect() as connection:
            return list(connection.execute(query).mappings())

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        # ValueError: what is in a column isn't JSON; OverflowError: a number beyond 64 bits.
        except (SQLAlchemyError, sqlite3.Error, OSError, OverflowError, ValueError) as error:
            raise StoreError(f"{self.name}: can't {what}: {_reason(error)}") from error

    def _require_run(self, connection: sa.Connection, run_id: str) -> None:
        if not _has_run(connection, run_id):
            raise StoreError(f"{self.name}: there is no run {run_id}")

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
        with _MIGRATING, self._write("bring its tables up to date") as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")  # from what it finds: another process may have been faster

    def _find_schema(self) -> tuple[str | None, list[str]]:
        """The revision of the tables, None without any, and those that are known, the newest first."""
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
            raise StoreError(f"{self.name} isn't a history: its tables {', '.join(strange)} are another program's")
        return schema, known

    def _use_write_ahead_log(self) -> None:
        """On SQLite: readers don't hold up the writer. A file system that can't have it keeps the rollback journal."""
        if self._engine.dialect.name == "sqlite":
            with self._errors("write"):
                raw = self._engine.raw_connection()
                try:
                    raw.cursor().execute("PRAGMA journal_mode = WAL")
                finally:
                    raw.close()


def without_password(url: str) -> str:
    """A database's URL as it may be kept and shown: without the password, and otherwise as it is.

    Whoever connects with it leaves the password to PostgreSQL's client, which takes it from PGPASSWORD or ~/.pgpass.

    Raises:
        StoreError: it is no URL.
    """
    parsed = _url(url)
    kept = parsed.difference_update_query(_SECRETS)
    if parsed.password is None and kept.query == parsed.query:
        return url
    parts = (kept.drivername, kept.username, None, kept.host, kept.port, kept.database, kept.query)
    return sa.URL.create(*parts).render_as_string()


def _connect(database: str | Path, create: bool) -> tuple[sa.Engine, str]:
    """An engine for a database, and its name for people."""
    url = _parse(database)
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        return _sqlite(url, path, create), str(path)
    name = url.difference_update_query(_SECRETS).render_as_string(hide_password=True)
    # Prepared statements belong to a connection, and a pooler in transaction mode gives the next transaction another.
    options: dict[str, int | None] = {"prepare_threshold": None}
    if "connect_timeout" not in url.query:
        options["connect_timeout"] = int(_WAIT_S)
    try:
        # A connection that was lost between two rounds is made anew.
        engine = sa.create_engine(url, connect_args=options, pool_pre_ping=True, json_serializer=_to_json)
    except ImportError as error:
        raise StoreError(f"{name}: needs psycopg: pip install 'fedmtl[postgresql]' ({error})") from None
    except (SQLAlchemyError, ValueError) as error:
        raise StoreError(f"{name}: {_reason(error)}") from None
    return engine, name


def _parse(database: str | Path) -> sa.URL:
    if isinstance(database, Path):
        return sa.URL.create("sqlite", database=str(database))
    url = _url(database)
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StoreError(f"{url.drivername}: not a database that a history can be in: {_EXPECTED}")
    if url.database in (None, "", ":memory:") or url.query or url.host:
        raise StoreError(f"{url.render_as_string()}: a history on SQLite is in a file: expected sqlite:///PATH")
    return url


def _url(text: str) -> sa.URL:
    try:
        return sa.make_url(text)
    except (SQLAlchemyError, ValueError):  # it isn't shown: there may be a password in it
        raise StoreError(f"not a database's URL: {_EXPECTED}") from None


def _sqlite(url: sa.URL, path: Path, create: bool) -> sa.Engine:
    if not create and not path.is_file():
        raise StoreError(f"{path}: there is no such file")
    mode = "rwc" if create else "rw"
    if not create and not os.access(path.parent, os.W_OK) and not _is_filled(path.with_name(path.name + "-wal")):
        mode = "ro&immutable=1"  # SQLite would make files beside it, to share it with a writer that can't be

    def connect() -> sqlite3.Connection:
        uri = f"file:{quote(os.path.abspath(path))}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on disk when it returns
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    engine = sa.create_engine(url, creator=connect, json_serializer=_to_json)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:  # the driver by itself would do so too late, and not for tables
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _alembic_config() -> AlembicConfig:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _schema(connection: sa.Connection) -> str | None:
    """The revision of a database's tables; None if it has none of ours."""
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _has_run(connection: sa.Connection, run_id: str) -> bool:
    return connection.execute(sa.select(RUNS.c.run_id).where(RUNS.c.run_id == run_id)).first() is not None


def _find_round(connection: sa.Connection, run_id: str, round_: int) -> RoundRecord | None:
    query = ROUNDS.select().where(ROUNDS.c.run_id == run_id, ROUNDS.c.round == round_)
    row = connection.execute(query).mappings().first()
    return None if row is None else RoundRecord(**row)


def _same_end(before: RoundRecord, record: RoundRecord) -> bool:
    """Whether a round has ended already, by a call whose answer was lost."""
    when = (record.opened_at_unix_ms, record.ended_at_unix_ms)
    return before.outcome == record.outcome and (before.opened_at_unix_ms, before.ended_at_unix_ms) == when


def _replace_round(connection: sa.Connection, record: RoundRecord) -> None:
    here = (ROUNDS.c.run_id == record.run_id, ROUNDS.c.round == record.round)
    connection.execute(ROUNDS.delete().where(*here))
    connection.execute(ROUNDS.insert(), [_row(record)])


def _roll_back_updates(connection: sa.Connection, where: sa.ColumnElement[bool]) -> None:
    counted = UPDATES.c.outcome == "counted"
    connection.execute(UPDATES.update().where(where, counted).values(outcome="rolled_back"))


def _replace_metrics(connection: sa.Connection, run_id: str, metrics: Sequence[MetricRecord]) -> None:
    for one in metrics:
        key = {"run_id": run_id, "round": one.round, "task": one.task, "name": one.name}
        connection.execute(METRICS.delete().where(*(METRICS.c[column] == value for column, value in key.items())))
        connection.execute(METRICS.insert(), [_row(one) | key])


def _metrics_of(record: RoundRecord) -> list[MetricRecord]:
    """What a round's clients measured: the model before it."""
    return [
        MetricRecord(record.round - 1, task["task"], _storable(name), value, _num_clients(task, name))
        for task in (record.report or {}).get("tasks", ())
        for name, value in task["received_metrics"].items()
    ]


def _num_clients(task: Mapping[str, Any], name: str) -> int:
    """Clients that a metric was taken over; where the report doesn't say, all of the task's."""
    report = task.get("received_reports", {}).get(name)
    return int(report["num_clients"] if report else task["num_updates"])


def _row(record: RunRecord | RoundRecord | UpdateRecord | MetricRecord) -> dict[str, Any]:
    return {one.name: getattr(record, one.name) for one in fields(record)}


def _run_record(row: sa.RowMapping) -> RunRecord:
    return RunRecord(**{**row, "tasks": tuple(row["tasks"])})


def _update_row(run_id: str, update: UpdateRecord) -> dict[str, Any]:
    row = {name: _storable(value) if isinstance(value, str) else value for name, value in _row(update).items()}
    return row | {"run_id": run_id, "code": row["code"] or None, "reason": row["reason"] or None}


def _update_record(row: sa.RowMapping) -> UpdateRecord:
    values = {one.name: row[one.name] for one in fields(UpdateRecord)}
    return UpdateRecord(**values | {"code": row["code"] or "", "reason": row["reason"] or ""})


def _storable(text: str) -> str:
    """Text that every database takes: PostgreSQL has no NUL, and what a refused client sent may be anything."""
    return text.replace("\0", "\\x00")


def _to_json(value: object) -> str:
    return json.dumps(value, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _reason(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    needs_password = getattr(getattr(cause, "pgconn", None), "needs_password", False)
    return " ".join(str(cause).split()) + (f"; {_NEEDS_PASSWORD}" if needs_password else "")
