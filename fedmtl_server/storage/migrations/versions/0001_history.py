"""Runs, rounds, updates and metrics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("created_at_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("run_dir", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("tasks", sa.JSON(), nullable=False),
        sa.Column("num_rounds", sa.BigInteger(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("finished_at_unix_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
    )
    op.create_index("ix_runs_created_at_unix_ms", "runs", ["created_at_unix_ms"])
    op.create_table(
        "rounds",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("opened_at_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_unix_ms", sa.BigInteger()),
        sa.Column("cohort", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON()),
        sa.Column("checkpoint", sa.JSON()),
        sa.PrimaryKeyConstraint("run_id", "round", name="pk_rounds"),
        _of_a_run("rounds"),
    )
    op.create_table(
        "updates",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("base_round", sa.BigInteger(), nullable=False),
        sa.Column("update_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("num_examples", sa.BigInteger(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_metrics", sa.JSON(), nullable=False),
        sa.Column("trained_metrics", sa.JSON(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("code", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_updates"),
        _of_a_run("updates"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_updates_run_id_round", "updates", ["run_id", "round"])
    op.create_index(
        "uq_updates_counted_once",
        "updates",
        ["run_id", "client_id", "update_id"],
        unique=True,
        sqlite_where=sa.text("outcome = 'counted'"),
        postgresql_where=sa.text("outcome = 'counted'"),
    )
    op.create_table(
        "metrics",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("num_clients", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "round", "task", "name", name="pk_metrics"),
        _of_a_run("metrics"),
    )


def _of_a_run(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=f"fk_{table}_run_id_runs", ondelete="CASCADE")
