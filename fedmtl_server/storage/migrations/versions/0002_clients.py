"""The clients that a server knows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "known_clients",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tasks", sa.JSON()),
        sa.Column("token_sha256", sa.Text()),
        sa.Column("added_at_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_unix_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("name", name="pk_known_clients"),
    )
