"""API keys: made once, shown once, kept as an HMAC.

A key is random and long, so a fast keyed hash is enough: whoever has the database and not the secret beside it
can neither use a key nor test a guess (OWASP Cryptographic Storage Cheat Sheet).
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from meritorder.ledger.database import StateError, make_folder

SECRET_FILE = "key.secret"
PREFIX = "mo-"

_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. Times are in seconds since the epoch."""

    id: str
    team: str
    name: str
    created_at: float
    revoked_at: float | None = None


class KeyStore:
    """The keys in one database, with the secret that their digests are made with."""

    def __init__(self, connection: sqlite3.Connection, secret: bytes) -> None:
        self._db = connection
        self._secret = secret

    def create(self, team: str, name: str = "") -> tuple[ApiKey, str]:
        """Make a key for `team`. The second part of the result is the key itself: it is not to be had again."""
        text = PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(f"key_{secrets.token_hex(4)}", team, name, time.time())
        self._db.execute(
            "INSERT INTO api_keys (id, team, name, digest, created_at) VALUES (?, ?, ?, ?, ?)",
            (key.id, team, name, self.digest(text), key.created_at),
        )
        return key, text

    def revoke(self, key_id: str) -> bool:
        """Revoke a key; False where there is none of that id that is in force."""
        done = self._db.execute(
            "UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (time.time(), key_id)
        )
        return done.rowcount == 1

    def list(self) -> list[ApiKey]:
        rows = self._db.execute("SELECT id, team, name, created_at, revoked_at FROM api_keys ORDER BY created_at")
        return [ApiKey(*row) for row in rows]

    def active(self) -> dict[bytes, ApiKey]:
        """Every key in force, by its digest."""
        rows = self._db.execute("SELECT digest, id, team, name, created_at FROM api_keys WHERE revoked_at IS NULL")
        return {row[0]: ApiKey(*row[1:]) for row in rows}

    def digest(self, text: str) -> bytes:
        return hmac.digest(self._secret, text.encode("utf-8", "surrogateescape"), hashlib.sha256)

    def version(self) -> int:
        """A number that changes whenever another connection has changed the database."""
        version: int = self._db.execute("PRAGMA data_version").fetchone()[0]
        return version


def load_secret(state_dir: Path) -> bytes:
    """The secret in `state_dir`, made on first use; only its owner may read it.

    Raises:
        StateError: there is one that cannot be right, or it can be neither read nor made.
    """
    make_folder(state_dir)
    path = state_dir / SECRET_FILE
    try:
        if not path.exists():
            _make_secret(path)
        secret = path.read_bytes()
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
    if len(secret) != _SECRET_BYTES:
        raise StateError(f"{path} is damaged; restore it, or remove it and make all keys anew")
    return secret


def _make_secret(path: Path) -> None:
    """Write a new secret to `path`, whole or not at all; where another process is first, its secret stays."""
    descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # only its owner may read it
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        os.unlink(fresh)
