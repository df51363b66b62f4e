"""API keys: made once, shown once, kept as an HMAC.

A key is random and long, so a fast keyed hash is enough: whoever has the database and not the secret beside it
can neither use a key nor test a guess (OWASP Cryptographic Storage Cheat Sheet).
"""

import contextlib
import hmac
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, select, update

from meritorder.core.limits import Allowance, Budget, Limits, Period
from meritorder.ledger.database import StateError, insert, make_folder, reading
from meritorder.ledger.schema import api_keys, revisions

SECRET_FILE = "key.secret"
PREFIX = "mo-"

_SECRET_BYTES = 32
_REVISION = "keys"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may use of what its team may use."""

    limits: Limits = field(default_factory=Limits)
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. Times are in seconds since the epoch.

    One with `admin` is for the administration and not for models; it has no team.
    """

    id: str
    team: str
    name: str
    created_at: float
    revoked_at: float | None = None
    limits: KeyLimits = KeyLimits()
    admin: bool = False

    @property
    def allowance(self) -> Allowance:
        return Allowance(f"key:{self.id}", self.limits.limits, self.limits.budgets)


class KeyStore:
    """The keys in one database, with the secret that their digests are made with.

    Every method but `digest` blocks on the database, and raises what SQLAlchemy does where it is away.
    """

    def __init__(self, engine: Engine, secret: bytes) -> None:
        self._engine = engine
        self._hmac = hmac.new(secret, digestmod="sha256")

    def create(
        self, team: str, name: str = "", limits: KeyLimits = KeyLimits(), *, admin: bool = False
    ) -> tuple[ApiKey, str]:
        """Make a key for `team`. The second part of the result is the key itself: it is not to be had again."""
        text = PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(f"key_{secrets.token_hex(4)}", team, name, time.time(), None, limits, admin)
        row = {
            "id": key.id, "team": team, "name": name, "digest": self.digest(text), "admin": admin,
            "limits": _to_json(limits), "created_at": key.created_at,
        }  # fmt: skip
        with self._engine.begin() as connection:
            connection.execute(insert(connection, api_keys), row)
            _changed(connection)
        return key, text

    def revoke(self, key_id: str) -> bool:
        """Revoke a key; False where there is none of that id that is in force."""
        in_force = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
        with self._engine.begin() as connection:
            done = connection.execute(update(api_keys).where(in_force).values(revoked_at=time.time())).rowcount == 1
            if done:
                _changed(connection)
        return done

    def list(self) -> list[ApiKey]:
        """All keys there ever were, the oldest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)).all()
        return [_key(row) for row in rows]

    def active(self) -> dict[bytes, ApiKey]:
        """Every key in force, by its digest."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(api_keys).where(api_keys.c.revoked_at.is_(None))).all()
        return {row.digest: _key(row) for row in rows}

    def digest(self, text: str) -> bytes:
        # A copy of a begun one, as the one-shot function lets other threads run, and this one wait for its turn.
        begun = self._hmac.copy()
        begun.update(text.encode("utf-8", "surrogateescape"))
        return begun.digest()

    def version(self) -> int:
        """A number that grows with every change of the keys, whoever makes it. Read it before `active`."""
        with reading(self._engine) as connection:
            number = connection.execute(select(revisions.c.number).where(revisions.c.name == _REVISION)).scalar()
        return number or 0


def _changed(connection: Connection) -> None:
    # In the transaction of the change itself: whoever sees the number sees the change.
    statement = insert(connection, revisions).on_conflict_do_update(
        index_elements=[revisions.c.name], set_={"number": revisions.c.number + 1}
    )
    connection.execute(statement, {"name": _REVISION, "number": 1})


def _key(row: Row[Any]) -> ApiKey:
    limits = _from_json(row.limits)
    return ApiKey(row.id, row.team, row.name, row.created_at, row.revoked_at, limits, row.admin)


def _to_json(limits: KeyLimits) -> dict[str, Any]:
    rates = {name: value for name, value in asdict(limits.limits).items() if value is not None}
    budgets = [{"period": budget.period.value, "amount": str(budget.amount)} for budget in limits.budgets]
    return rates | ({"budgets": budgets} if budgets else {})


def _from_json(value: Mapping[str, Any]) -> KeyLimits:
    rates = {name: number for name, number in value.items() if name != "budgets"}
    budgets = tuple(Budget(Period(one["period"]), Decimal(one["amount"])) for one in value.get("budgets", ()))
    return KeyLimits(Limits(**rates), budgets)


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
