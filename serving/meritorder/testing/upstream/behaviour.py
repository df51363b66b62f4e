"""How the upstream treats one request: its waits, its answer and its faults.

The model is strict: a misspelt field or a number in quotes is an error that names the field, because a fault
that is silently not injected makes a test pass for the wrong reason.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

FailMode = Literal["close", "error_event", "malformed", "stall"]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000)]

_OWN_FIELDS = frozenset({"id", "object", "created", "model", "choices", "data", "usage", "system_fingerprint"})
# Wrong values of the first three would break the framing; nobody may hide the last one.
_OWN_HEADERS = frozenset({"connection", "content-length", "transfer-encoding", "x-simulated"})
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class StrictModel(BaseModel):
    """A part of a script."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Behaviour(StrictModel):
    """How one request is answered. The default answers at once, in full."""

    ttft_ms: Milliseconds = 0
    """Time from the request's arrival to the first token, or to the error. Milliseconds."""
    itl_ms: Milliseconds = 0
    """Time between tokens; an answer that is not streamed takes as long in all. Milliseconds."""
    jitter: float = Field(default=0, ge=0, le=1)
    """Each wait is multiplied by a random factor between 1 - jitter and 1 + jitter."""
    seed: int = 0
    """Of the jitter: the rule's n-th request has the same waits in every run."""

    tokens: int | None = Field(default=None, ge=0, le=100_000)
    """Length of the answer in tokens (words); 16 if neither this nor `text` is given."""
    text: str | None = None
    """The answer itself, instead of `tokens` words that say "simulated"."""
    usage: dict[str, JsonValue] | Literal["counted"] | None = "counted"
    """Sent instead of the counted usage; null means that the answer reports none."""
    extra_fields: dict[str, JsonValue] = {}
    """Added to the top level of the answer and of every chunk."""

    status: int = Field(default=200, ge=200, le=599)
    """200, or the HTTP status (400 to 599) of an error."""
    error_code: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    headers: dict[str, str] = {}
    """Added to the answer, whatever its status."""

    refuse_connection: bool = False
    """Reset the connection before any byte."""
    hang: bool = False
    """Send nothing, until the client goes."""
    fail_after_chunks: int | None = Field(default=None, ge=0)
    """Fail after this many events of a stream (the one with the role is the first), `[DONE]` at the latest.
    An answer that is not streamed fails half-way through its body."""
    fail_mode: FailMode | None = None
    """close (the default): cut the connection. error_event: an error in the stream (a 500 if not streamed),
    and no `[DONE]`. malformed: bytes that are neither SSE nor JSON. stall: silence, until the client goes."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests beyond it get a 429. Refilled evenly, one request every 60/n seconds."""
    concurrency: int | None = Field(default=None, ge=1)
    """Requests beyond it, at one time, get a 429."""

    @property
    def failure(self) -> FailMode | None:
        """How an answer that has begun fails, if it does."""
        return None if self.fail_after_chunks is None else self.fail_mode or "close"

    @field_validator("status")
    @classmethod
    def _status_is_ok_or_an_error(cls, status: int) -> int:
        if 200 < status < 400:
            raise ValueError("must be 200, or 400 to 599")
        return status

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"{name} is set by the upstream itself")
            if not _HEADER_NAME.fullmatch(name) or not value.isprintable():
                raise ValueError(f"{name!r} is no valid header")
        return headers

    @field_validator("extra_fields")
    @classmethod
    def _extra_fields_are_extra(cls, fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if own := sorted(_OWN_FIELDS & fields.keys()):
            raise ValueError(f"{own[0]} is a field of OpenAI's own")
        return fields

    @model_validator(mode="after")
    def _fields_go_together(self) -> Self:
        faults = {
            "status": self.status != 200,
            "refuse_connection": self.refuse_connection,
            "hang": self.hang,
            "fail_after_chunks": self.fail_after_chunks is not None,
        }
        chosen = [name for name, is_set in faults.items() if is_set]
        if len(chosen) > 1:
            raise ValueError(f"{chosen[0]} and {chosen[1]} exclude each other")
        if self.text is not None and self.tokens is not None:
            raise ValueError("text and tokens exclude each other")
        if self.fail_mode is not None and self.fail_after_chunks is None:
            raise ValueError("fail_mode needs fail_after_chunks")
        if self.status == 200 and self.failure != "error_event":
            for name in ("error_code", "error_type", "error_message"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs an error status or fail_mode error_event")
        return self
