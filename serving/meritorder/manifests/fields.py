"""The building blocks of the kinds: strict objects in camelCase, and the scalar types that they share."""

import re
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Strict(BaseModel):
    """A manifest object: camelCase in YAML, unknown fields refused, immutable once read."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True
    )


def _exact(value: Any) -> Any:
    # YAML reads 0.15 as a binary float; its shortest decimal form is what the person wrote.
    return str(value) if isinstance(value, float) else value


Money = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, allow_inf_nan=False)]
"""US dollars. Written as a number or a string; kept exactly as written."""

Name = Annotated[
    str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63, description="A DNS label (RFC 1123).")
]

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$", max_length=200)]
"""The name of a model at a provider; providers use slashes, dots and colons in them."""


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give an http:// or https:// URL, such as https://api.example.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("give the URL without user, password, query or fragment; keys belong in `credentials`")
    return value.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http_url)]

_HUGGING_FACE = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def _source(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme == "hf" and not _HUGGING_FACE.fullmatch(rest):
        raise ValueError("give hf://organisation/name or hf://organisation/name@revision")
    if scheme not in ("hf", "file") or not rest:
        raise ValueError("give hf://organisation/name[@revision] or file://path/to/folder")
    return value


Source = Annotated[str, AfterValidator(_source)]
"""Where weights come from. A relative `file://` path is relative to the manifest that names it."""
