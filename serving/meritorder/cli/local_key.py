"""The key that `up` makes for whoever sits at this machine; `chat` and the curl line use it."""

import os
from pathlib import Path

from meritorder.cli.ledger import opened
from meritorder.cli.running import LOCAL_KEY_FILE
from meritorder.ledger.keys import KeyStore, load_secret


def ensure_local_key(state_dir: Path, team: str, database: str | None = None) -> str:
    """The local key of `team`; made, and written where only its owner may read it, unless there is one in force."""
    file = state_dir / LOCAL_KEY_FILE
    with opened(state_dir, database) as engine:
        store = KeyStore(engine, load_secret(state_dir))
        known = store.active().get(store.digest(file.read_text().strip())) if file.exists() else None
        if known is not None and known.team == team:
            return file.read_text().strip()
        if known is not None:
            store.revoke(known.id)
        _, text = store.create(team, "made by `meritorder up` for this machine")
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as secret:
        secret.write(text + "\n")
    return text
