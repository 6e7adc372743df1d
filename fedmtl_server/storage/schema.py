"""The tables of the database, the clients' table included, exactly as the revisions in `migrations` create them."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)
VERSION_TABLE = "fedmtl_version"
"""The table with the schema's revision; its name avoids other programs' migrations in the same database."""


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
"""Makes the database itself guarantee that no update counts twice."""

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
"""The clients that a server admits, whatever the run: `fedmtl_server.access.clients` reads and writes it."""
