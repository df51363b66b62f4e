"""A provider's key, read where it is used and shown nowhere.

Only a hosted-proxy replica calls this. The key is in no argument of a deployment, no runtime environment and
no log; errors and representations name where the key should be, never what it is.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from meritorder.manifests.kinds import Credentials

SECRETS_DIR_VARIABLE = "MERITORDER_SECRETS_DIR"
DEFAULT_SECRETS_DIR = "/var/run/secrets/meritorder"
"""A `secretRef` of name N and key K is the file `<this>/N/K`: the Secret N mounted as a volume at `<this>/N`."""


class CredentialError(Exception):
    """There is no usable key. The message is one sentence that names the variable or file."""


@dataclass
class Credential:
    """The key behind a manifest's `credentials`; a file is read again when it has changed."""

    variable: str | None = None
    file: Path | None = None
    _key: str = field(default="", repr=False)
    _version: tuple[int, int, int] | None = field(default=None, repr=False)

    @classmethod
    def simulated(cls) -> Self:
        """What a simulated upstream takes: any key at all."""
        return cls(_key="simulated")

    def authorization(self, environ: Mapping[str, str] = os.environ) -> str:
        """The value of the `Authorization` header.

        Raises:
            CredentialError: there is no key, and there never was one: a file that disappears keeps its last key.
        """
        if self.variable is not None:
            self._key = _usable(environ.get(self.variable, ""), f"the environment variable {self.variable}")
        elif self.file is not None:
            self._read(self.file)
        return f"Bearer {self._key}"

    def _read(self, file: Path) -> None:
        try:
            stat = file.stat()
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if version != self._version:
                self._key = _usable(file.read_text(encoding="utf-8"), f"the file {file}")
                self._version = version
        except (OSError, UnicodeDecodeError, CredentialError) as error:
            # While a file is being replaced it may be missing or empty for a moment.
            if self._key:
                return
            if isinstance(error, CredentialError):
                raise
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise CredentialError(f"the file {file}, which should hold the key, cannot be read: {reason}") from None


def credential(credentials: Credentials, environ: Mapping[str, str] = os.environ) -> Credential:
    """Where the key of a manifest is on this machine; nothing is read yet."""
    if credentials.env is not None:
        return Credential(variable=credentials.env)
    if credentials.file is not None:
        return Credential(file=Path(credentials.file))
    assert credentials.secret_ref is not None
    folder = Path(environ.get(SECRETS_DIR_VARIABLE, DEFAULT_SECRETS_DIR))
    return Credential(file=folder / credentials.secret_ref.name / credentials.secret_ref.key)


def _usable(text: str, where: str) -> str:
    key = text.strip()
    if not key:
        raise CredentialError(f"{where}, which should hold the key, is not set or empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise CredentialError(f"{where} holds something that cannot be a key: spaces, line breaks or non-ASCII text")
    return key
