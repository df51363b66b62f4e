"""How the database is opened, and where SQLite and PostgreSQL differ.

`engine.begin()` is a transaction that writes: SQLite gives its only write lock at the beginning, so none fails half
way through. `reading(engine)` is one that reads: it sees one moment of the database and holds nobody up.

What changes `spend` or `leases` first calls `lock_scopes`, in both databases: then no two can wait for each other.
"""

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, BigInteger, ColumnElement, Connection, Engine, Table, create_engine, event, func, make_url
from sqlalchemy import cast as cast_to
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from meritorder.core.pricing import EXACT
from meritorder.ledger.errors import StateError as StateError
from meritorder.ledger.migrations import is_current, migrate
from meritorder.ledger.schema import Money

FILE = "meritorder.db"

_PATIENCE_SECONDS = 10.0
_READING = "meritorder_reading"
_PATIENCE = "meritorder_patience"
_SCOPE_LOCKS = 64  # a request that names many scopes must not use up the server's table of locks
_LOCK_CLASS = 0x6D6F  # "mo", so that our advisory locks are not those of another program in the database

# A server that vanishes is noticed after about 20 s, and not after the two hours of Linux.
_POSTGRESQL_CONNECTION = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
    "application_name": "meritorder",
    # Nor may a program that vanished in the middle of a transaction keep its locks from all others.
    "options": "-c lock_timeout=10s -c idle_in_transaction_session_timeout=30s",
}


def open_database(place: Path | str) -> Engine:
    """The database at `place`, with the tables as this release knows them; made where there is none.

    A path is a state directory, for SQLite; a text is a URL, `postgresql://user:password@host/name`. Whoever opens it
    disposes of it.

    Raises:
        StateError: it cannot be reached, a newer release has written it, it is damaged, or it is none.
    """
    if isinstance(place, str):
        url = _postgresql_url(place)
        engine, name = _postgresql_engine(url), f"the PostgreSQL database {url.database!r} at {_address(url)}"
    else:
        path = _make_file(place)
        engine, name = _sqlite_engine(path), str(path)
    try:
        if engine.dialect.name == "sqlite":
            _write_ahead(engine)
        with reading(engine) as connection:  # nearly always enough, and it waits for nobody
            current = is_current(connection)
        if not current:
            with engine.begin() as connection:
                migrate(connection, name)
    except (SQLAlchemyError, sqlite3.Error) as error:
        engine.dispose()
        raise StateError(f"{name} cannot be opened: {reason(error)}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def reason(error: Exception) -> str:
    """What the database said, in one line and without our statement and its values."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(said).split("\n")[0].split()) or type(said).__name__


def make_folder(state_dir: Path) -> None:
    """Make the folder where there is none; only its owner may enter it.

    Raises:
        StateError: it cannot be made, or is no folder.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unusable(state_dir, error) from error


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads, all of it from one moment."""
    options: dict[str, Any] = {_READING: True}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect() as connection:
        yield connection.execution_options(**options)


def impatient(engine: Engine, seconds: float) -> Engine:
    """The same database, where SQLite's lock is waited for no longer than `seconds`; by default it is 10."""
    return engine.execution_options(**{_PATIENCE: seconds})


def lock_scopes(connection: Connection, scopes: Iterable[str]) -> None:
    """Keep all others from changing what belongs to these scopes until the transaction ends; to be called once in it.

    SQLite has one writer at a time anyway.
    """
    if connection.dialect.name == "sqlite":
        return
    # The order is what keeps two transactions from waiting for each other. Two scopes may share a lock.
    keys = sorted({zlib.crc32(scope.encode()) % _SCOPE_LOCKS for scope in scopes})
    for key in keys:
        connection.execute(func.pg_advisory_xact_lock(_LOCK_CLASS, key).select())


def insert(engine: Engine | Connection, table: Table) -> postgresql.Insert:
    """An INSERT with ON CONFLICT, which both databases have and SQLAlchemy has per database."""
    if engine.dialect.name == "sqlite":
        return cast(postgresql.Insert, sqlite.insert(table))
    return postgresql.insert(table)


class exact_sum(FunctionElement[Decimal]):
    """The sum of a money column. SQLite's own would be that of floats."""

    name = "exact_sum"
    type = Money()
    inherit_cache = True


@compiles(exact_sum)
def _sum_numbers(element: exact_sum, compiler: SQLCompiler, **options: Any) -> str:
    return f"sum({compiler.process(element.clauses, **options)})"


@compiles(exact_sum, "sqlite")
def _sum_texts(element: exact_sum, compiler: SQLCompiler, **options: Any) -> str:
    return f"exact_sum({compiler.process(element.clauses, **options)})"


class _ExactSum:
    """The aggregate behind `exact_sum` in SQLite; as in SQL, NULL is left out, and the sum of nothing is NULL."""

    def __init__(self) -> None:
        self._sum: Decimal | None = None

    def step(self, text: str | None, /) -> None:
        if text is not None:
            self._sum = EXACT.add(self._sum or Decimal(0), Decimal(text))

    def finalize(self) -> str | None:
        return None if self._sum is None else format(self._sum, "f")


def whole(number: ColumnElement[Any]) -> ColumnElement[int]:
    """The greatest whole number that is not above `number`. A cast alone rounds in PostgreSQL, and not in SQLite."""
    return cast_to(func.floor(number), BigInteger)


def _postgresql_url(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    # Never the text itself: it has a password in it.
    if url is None or url.drivername not in ("postgresql", "postgres", "postgresql+psycopg") or not url.database:
        raise StateError("the database URL is not of the form postgresql://user:password@host:port/name; correct it")
    return url.set(drivername="postgresql+psycopg")


def _address(url: URL) -> str:
    return f"{url.host or 'the local socket'}{f':{url.port}' if url.port else ''}"


def _postgresql_engine(url: URL) -> Engine:
    # Each connection is tried before it is used, because a server that was started again has closed them all.
    arguments = {name: value for name, value in _POSTGRESQL_CONNECTION.items() if name not in url.query}
    return create_engine(url, pool_pre_ping=True, connect_args=arguments, hide_parameters=True)


def _sqlite_engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"timeout": _PATIENCE_SECONDS}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # or Python would choose when a transaction begins
        connection.execute("PRAGMA synchronous = NORMAL").close()
        connection.create_aggregate("exact_sum", 1, _ExactSum)  # type: ignore[arg-type] # that knows integers only

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {options.get(_PATIENCE, _PATIENCE_SECONDS) * 1000:.0f}")
        connection.exec_driver_sql("BEGIN" if options.get(_READING) else "BEGIN IMMEDIATE")

    return engine


def _make_file(state_dir: Path) -> Path:
    """The database's file; only its owner may read it."""
    make_folder(state_dir)
    path = state_dir / FILE
    # Only where there is none yet: to close any descriptor of a file drops all of this process's locks on it
    # (sqlite.org/howtocorrupt.html), and the next program to leave would take the write-ahead log away.
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise _unusable(state_dir, error) from error
    return path


def _unusable(state_dir: Path, error: OSError) -> StateError:
    return StateError(f"{state_dir} cannot be used as the state directory: {error.strerror}")


def _write_ahead(engine: Engine) -> None:
    """Let readers and a writer work at once. The file remembers it, so only the first has to ask."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        while cursor.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            try:
                cursor.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                # It takes the file for itself, and SQLite does not wait for that as it does for all else.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
