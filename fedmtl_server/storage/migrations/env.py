"""Runs the revisions on the connection that `History` hands over, within its transaction."""

from alembic import context

from fedmtl_server.storage.history import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
context.run_migrations()
