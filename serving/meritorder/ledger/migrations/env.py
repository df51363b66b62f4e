"""What alembic runs for each command. The connection, and the transaction it is in, are those of the caller."""

from alembic import context

from meritorder.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
