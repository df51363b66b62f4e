"""The schema, and how a connection to it is opened."""

import contextlib
import os
import sqlite3
import time
from pathlib import Path

FILE = "meritorder.db"

_PATIENCE_SECONDS = 10.0
_SCHEMA_VERSION = 1
_SCHEMA = (
    """
CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,           -- public: names the key in lists and logs
    team       TEXT NOT NULL,
    name       TEXT NOT NULL,              -- what it is for, in a person's words
    digest     BLOB NOT NULL UNIQUE,       -- HMAC-SHA-256 of the key; the key itself is nowhere
    created_at REAL NOT NULL,              -- seconds since the epoch
    revoked_at REAL
) STRICT""",
    """
CREATE TABLE usage (
    id                   INTEGER PRIMARY KEY,
    request_id           TEXT NOT NULL,    -- not unique: a client may choose it, and choose it twice
    started_at           REAL NOT NULL,    -- seconds since the epoch
    team                 TEXT NOT NULL,
    key_id               TEXT NOT NULL,    -- of api_keys; the key may be revoked
    route                TEXT NOT NULL,
    endpoint             TEXT NOT NULL,
    backend              TEXT,             -- NULL: none answered
    tier                 TEXT,
    attempts             INTEGER NOT NULL,
    outcome              TEXT NOT NULL,
    status               INTEGER NOT NULL,
    input_tokens         INTEGER NOT NULL,
    cached_input_tokens  INTEGER NOT NULL,
    output_tokens        INTEGER NOT NULL,
    estimated            INTEGER NOT NULL, -- 1: counted here, not reported by the backend
    cost_usd             TEXT NOT NULL,    -- a decimal, exact
    time_to_first_token  REAL,             -- seconds
    duration             REAL NOT NULL     -- seconds
) STRICT""",
    "CREATE INDEX usage_by_request ON usage (request_id)",
)


class StateError(Exception):
    """The state directory cannot be used. The text is one sentence, for a person who can mend it."""


def make_folder(state_dir: Path) -> None:
    """Make the folder where there is none; only its owner may enter it.

    Raises:
        StateError: it cannot be made, or is no folder.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unusable(state_dir, error) from error


def _unusable(state_dir: Path, error: OSError) -> StateError:
    return StateError(f"{state_dir} cannot be used as the state directory: {error.strerror}")


def connect(state_dir: Path) -> sqlite3.Connection:
    """Open the database in `state_dir`, and make it where there is none; only its owner may read it.

    Raises:
        StateError: a newer release has written it, it is damaged, or the folder cannot be used.
    """
    make_folder(state_dir)
    path = state_dir / FILE
    # Only where there is none yet: to close any descriptor of a file drops all of this process's locks on it
    # (sqlite.org/howtocorrupt.html), and the next program to leave would take the write-ahead log away.
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise _unusable(state_dir, error) from error
    try:
        return _open(path)
    except sqlite3.Error as error:
        raise StateError(f"{path} cannot be opened: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work at once. The file remembers it, so only the first has to ask."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            # It takes the file for itself, and SQLite does not wait for that as it does for all else.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise StateError(
                f"{path} was written by a newer release (schema {version}, this one knows {_SCHEMA_VERSION}); "
                "upgrade, or choose another state directory"
            )
        if version == 0:
            for statement in _SCHEMA:  # executescript() would commit first, and two processes may come here at once
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
