"""Runs the revisions on the connection that `Database` hands over, within its transaction."""

from alembic import context

from fedmtl_server.storage.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
context.run_migrations()
