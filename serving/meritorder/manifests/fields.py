"""The building blocks of the kinds: strict objects in camelCase, and the scalar types that they share.

A scalar's description is a noun phrase, because it is read in two places: the reference documentation, and
after the word "expected" in an error message.
"""

import re
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

MISPLACED = "misplaced"
"""The type of the error that `misplaced` makes."""


class Strict(BaseModel):
    """A manifest object: camelCase in YAML, unknown fields refused, immutable once read."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True
    )


def misplaced(field: int | str | tuple[int | str, ...], message: str) -> PydanticCustomError:
    """An error for the validator of a whole object to raise, which is the fault of one field of it.

    `field` is its name, its index in a list, or the path to it where it is deeper: `("arms", 0, "name")`.
    """
    return PydanticCustomError(MISPLACED, "{message}", {"field": field, "message": message})


Count = Annotated[
    int,
    Field(ge=1, le=1_000_000, strict=True, description="a whole number from 1 to 1000000, without quotes"),
]
"""How many of something. Strict, because Kubernetes takes neither `true` nor `"2"` for a number."""

Tokens = Annotated[
    int,
    Field(ge=1, le=10**12, strict=True, description="a whole number of tokens from 1 to 1000000000000, without quotes"),
]
"""How many tokens."""

Share = Annotated[
    float,
    Field(
        ge=0, le=1, strict=True, allow_inf_nan=False, description="a number from 0 to 1, such as 0.9, without quotes"
    ),
]
"""A part of one, which routing computes with: a float, as no money is."""

Seconds = Annotated[
    float,
    Field(
        gt=0,
        le=86_400,
        strict=True,
        allow_inf_nan=False,
        description="a number of seconds, above 0 and up to 86400, such as 1.5, without quotes",
    ),
]
"""A duration."""


def _exact(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    # YAML reads 0.15 as a binary float; its shortest decimal form is what the person wrote. That holds for up
    # to 15 digits, which is why the range and the decimals of Money are bounded.
    return str(value) if isinstance(value, float) else value


Money = Annotated[
    Decimal,
    BeforeValidator(_exact),
    Field(
        ge=0,
        lt=1_000_000,
        decimal_places=9,
        allow_inf_nan=False,
        description="US dollars, from 0 to 999999 and with up to nine decimals, such as 0.25",
    ),
]
"""US dollars, of a price. Written as a number or a string; kept exactly as written."""

Amount = Annotated[
    Decimal,
    BeforeValidator(_exact),
    Field(
        ge=0,
        lt=1_000_000_000,
        decimal_places=6,
        allow_inf_nan=False,
        description="US dollars, from 0 to 999999999 and with up to six decimals, such as 250",
    ),
]
"""US dollars, of a sum that prices add up to: more of them, and fewer decimals, in as many digits."""

Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
        max_length=63,
        description="a name of up to 63 lower-case letters, digits and inner dashes, such as my-model",
    ),
]
"""A DNS label (RFC 1123), because the names of Kubernetes services are made of it."""

ModelName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$",
        max_length=200,
        description="a provider's model name, such as gpt-5.4-nano",
    ),
]
"""The name of a model at a provider; providers use slashes, dots and colons in them."""

_NOT_IN_A_URL = re.compile(r"[^!-~]|[?#@]")


def _http_url(value: str) -> str:
    # `port` raises ValueError where the port is not one.
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("not an http(s) URL")
    if _NOT_IN_A_URL.search(value):
        raise ValueError("has a part that does not belong in it")
    return value.rstrip("/")


HttpUrl = Annotated[
    str,
    AfterValidator(_http_url),
    Field(
        description="an http:// or https:// URL without user, password, query and fragment, "
        "such as https://api.example.com/v1"
    ),
]

_SOURCE = re.compile(r"hf://[\w.-]+/[\w.-]+(@[\w./-]+)?|file://.+", re.ASCII)


def _source(value: str) -> str:
    if not _SOURCE.fullmatch(value):
        raise ValueError("neither a repository of Hugging Face nor a folder")
    return value


Source = Annotated[
    str,
    AfterValidator(_source),
    Field(description="hf://organisation/name, hf://organisation/name@revision or file://path/to/folder"),
]
"""Where weights come from. A relative `file://` path is relative to the manifest that names it."""
