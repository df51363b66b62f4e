"""The database of the commands."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from meritorder.ledger.database import StateError, open_database, reason


@contextlib.contextmanager
def opened(state_dir: Path, database: str | None) -> Iterator[Engine]:
    """The database that `--database` names, or that of the state directory.

    Raises:
        StateError: it cannot be opened, or goes away.
    """
    engine = open_database(database or state_dir)
    try:
        yield engine
    except SQLAlchemyError as error:
        raise StateError(f"the database does not do what it was asked to ({reason(error)}); try again") from error
    finally:
        engine.dispose()
