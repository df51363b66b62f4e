"""From a key to a caller."""

import time
from collections.abc import Mapping

from meritorder.core.catalog import Catalog
from meritorder.core.errors import LedgerUnavailable, NotAllowed, Unauthenticated
from meritorder.core.limits import Allowance
from meritorder.core.request import Caller
from meritorder.ledger.keys import ApiKey, KeyStore

_HOW = "send a team's key as 'Authorization: Bearer mo-...' (meritorder key create --team TEAM makes one)"
_HOW_ADMIN = "send an admin key as 'Authorization: Bearer mo-...' (meritorder key create --admin makes one)"

_DATABASE_BACK_SECONDS = 5.0

_ANSWER_SECONDS = 1.0
"""How long a look at the keys may take before the database counts as away; there is one every half second."""


class Authenticator:
    """Looks keys up in memory; `refresh` takes over what has changed in the store.

    It may be called in a thread: the keys are replaced as a whole. While the database is away, keys that have been
    seen go on, and nobody is told that a key is wrong: it may have been made since.
    """

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._version = -1
        self._active: Mapping[bytes, ApiKey] = {}
        self._silent_since: float | None = None
        self._catalog: Catalog | None = None
        self._callers: dict[str, Caller] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the keys again if the store has changed since the last time. Blocks on the database."""
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        try:
            version = self._keys.version()
            if version != self._version:
                self._active = self._keys.active()
                self._version = version
        except BaseException:
            self._silent_since = float("-inf")
            raise
        self._silent_since = None

    def caller(self, authorization: str | None, catalog: Catalog) -> Caller:
        """Who sent this `Authorization` header.

        Raises:
            Unauthenticated: there is no key, or none that is in force; which of the two is all that is told.
            NotAllowed: the key's team has no manifest (any more), or it is an admin key.
            LedgerUnavailable: the key is not known, and the database cannot be asked.
        """
        key = self._key(authorization, _HOW)
        if key.admin:
            raise NotAllowed(
                "An admin key is for /admin/v1 and calls no model; send a team's key.", code="team_key_required"
            )
        team = catalog.teams.get(key.team)
        if team is None:
            raise NotAllowed(
                f"The key's team {key.team!r} has no manifest; apply a Team of that name.",
                code="team_not_found",
            )
        if catalog is not self._catalog:
            self._catalog, self._callers = catalog, {}
        caller = self._callers.get(key.id)
        if caller is None:
            bounds = tuple(one for one in (key.allowance, team.allowance) if _bounds(one))
            caller = self._callers[key.id] = Caller(team, key.id, bounds)  # what a key may use never changes
        return caller

    def administrator(self, authorization: str | None) -> ApiKey:
        """The admin key in this `Authorization` header.

        Raises:
            Unauthenticated: as for `caller`.
            NotAllowed: it is a team's key.
        """
        key = self._key(authorization, _HOW_ADMIN)
        if not key.admin:
            raise NotAllowed(f"A team's key may not do this; {_HOW_ADMIN}.", code="admin_key_required")
        return key

    def _key(self, authorization: str | None, how: str) -> ApiKey:
        if not authorization:
            raise Unauthenticated(f"No API key was given; {how}.", code="missing_api_key")
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise Unauthenticated(f"The Authorization header is not of the Bearer scheme; {how}.")
        key = self._active.get(self._keys.digest(text.strip()))
        if key is None and self._away():
            raise LedgerUnavailable(
                "The API key cannot be checked, because the database does not answer; send the request again in a few "
                "seconds.",
                retry_after=_DATABASE_BACK_SECONDS,
            )
        if key is None:
            raise Unauthenticated(f"The API key is wrong or has been revoked; {how}.")
        return key

    def _away(self) -> bool:
        """Whether the database has refused to answer, or takes too long to."""
        since = self._silent_since
        return since is not None and time.monotonic() - since > _ANSWER_SECONDS


def _bounds(allowance: Allowance) -> bool:
    limits = allowance.limits
    rates = (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency)
    return bool(allowance.budgets) or any(limit is not None for limit in rates)
