"""From one version of the tables to the next. Each is a file in `versions`, written by hand and never changed again.

A test holds the last of them against `schema`.
"""

from pathlib import Path

from sqlalchemy import Connection, func, inspect, text

from meritorder.ledger.errors import StateError

HEAD = "0001"
"""The version that this release works with. Known without alembic, which takes most of a second to import."""

_LOCK = 0x6D6967  # "mig"


def is_current(connection: Connection) -> bool:
    return _version(connection) == HEAD


def migrate(connection: Connection, name: str) -> None:
    """Bring the tables to `HEAD`, in the transaction of `connection`. `name` is the database's, for the error.

    Programs that come at once wait for the first, in SQLite because the transaction is one that writes.

    Raises:
        StateError: a newer release has been here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(func.pg_advisory_xact_lock(_LOCK).select())
    version = _version(connection)
    if version == HEAD:
        return

    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        ScriptDirectory.from_config(config).get_revision(version or "base")
    except CommandError:
        raise StateError(
            f"{name} was written by a newer release (schema {version}, this one knows {HEAD}); "
            "upgrade, or choose another database"
        ) from None
    command.upgrade(config, HEAD)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
