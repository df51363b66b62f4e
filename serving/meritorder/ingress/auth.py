"""From a key to a caller."""

from collections.abc import Mapping

from meritorder.core.catalog import Catalog
from meritorder.core.errors import NotAllowed, Unauthenticated
from meritorder.core.request import Caller
from meritorder.ledger.keys import ApiKey, KeyStore

_HOW = "send a team's key as 'Authorization: Bearer mo-...' (meritorder key create --team TEAM makes one)"


class Authenticator:
    """Looks keys up in memory; `refresh` takes over what has changed in the store.

    It may be called in a thread: the keys are replaced as a whole.
    """

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._version = -1
        self._active: Mapping[bytes, ApiKey] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the keys again if the store has changed since the last time. Blocks on the database."""
        version = self._keys.version()
        if version != self._version:
            self._active = self._keys.active()
            self._version = version

    def caller(self, authorization: str | None, catalog: Catalog) -> Caller:
        """Who sent this `Authorization` header.

        Raises:
            Unauthenticated: there is no key, or none that is in force; which of the two is all that is told.
            NotAllowed: the key's team has no manifest (any more).
        """
        if not authorization:
            raise Unauthenticated(f"No API key was given; {_HOW}.", code="missing_api_key")
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise Unauthenticated(f"The Authorization header is not of the Bearer scheme; {_HOW}.")
        key = self._active.get(self._keys.digest(text.strip()))
        if key is None:
            raise Unauthenticated(f"The API key is wrong or has been revoked; {_HOW}.")
        team = catalog.teams.get(key.team)
        if team is None:
            raise NotAllowed(
                f"The key's team {key.team!r} has no manifest; apply a Team of that name.",
                code="team_not_found",
            )
        return Caller(team, key.id)
