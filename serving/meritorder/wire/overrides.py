"""What a request asks of the routing, by the body's `meritorder` object or by headers.

    {"model": "assistant", "messages": [...], "meritorder": {"max_cost_usd": "0.002", "exclude": ["openai/large"]}}
    x-meritorder-max-cost-usd: 0.002

SDKs send such an object as `extra_body`. It is taken out of the body before a backend sees it. A header loses
against the same field of the body, which is closer to whoever wrote the request.
"""

import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec

from meritorder.core.catalog import Override
from meritorder.core.errors import InvalidRequest
from meritorder.core.request import Overrides
from meritorder.wire.validation import invalid_field, plain

FIELD = "meritorder"
SESSION_HEADER = b"x-meritorder-session"
_MOST_SESSION_BYTES = 256
_MOST_MAGNITUDE = 18
"""Powers of ten. Refusals write amounts out, and of 1e999999999 there would be a gigabyte."""

_HEADERS = {f"x-meritorder-{override.value.replace('_', '-')}".encode(): override for override in Override}
_NUMBERS = (Override.MAX_COST, Override.MAX_TTFT, Override.MIN_QUALITY)
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    max_cost_usd: Decimal | None = None
    max_ttft_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    min_quality: _Share | None = None
    backend: Annotated[str, msgspec.Meta(min_length=1, max_length=300)] | None = None
    exclude: list[str] = []


_NONE = Overrides()
_NO_FIELDS = _Fields()


def read_overrides(field: msgspec.Raw | None, headers: Mapping[bytes, bytes]) -> Overrides:
    """The overrides of a request whose body has `field` as its `meritorder` object.

    Raises:
        InvalidRequest: one is unknown or of the wrong type; `param` names it.
    """
    named = {override: headers[name] for name, override in _HEADERS.items() if name in headers}
    if field is None and not named:
        return _NONE
    try:
        header = msgspec.convert({over.value: _from_header(over, value) for over, value in named.items()}, _Fields)
        body = (msgspec.json.decode(field, type=_Fields | None) if field is not None else None) or _NO_FIELDS
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    cost = header.max_cost_usd if body.max_cost_usd is None else body.max_cost_usd
    ttft = header.max_ttft_ms if body.max_ttft_ms is None else body.max_ttft_ms
    return Overrides(
        max_cost=None if cost is None else _amount(cost),
        max_ttft=None if ttft is None else ttft / 1000,
        min_quality=header.min_quality if body.min_quality is None else body.min_quality,
        backend=body.backend or header.backend,
        exclude=frozenset(body.exclude or header.exclude),
    )


def session_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The session that the client names, which a split may stick to."""
    value = headers.get(SESSION_HEADER)
    return value[:_MOST_SESSION_BYTES].decode("latin-1") if value else None


def _from_header(override: Override, value: bytes) -> Any:
    text = value.decode("latin-1").strip()
    if override is Override.EXCLUDE:
        return [name.strip() for name in text.split(",") if name.strip()]
    if override not in _NUMBERS:
        return text
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise _invalid(f"Expected a number, got {text[:40]!r} - at `$.{override.value}`") from None
    if override is Override.MAX_COST:
        return number
    if number.is_nan() or math.isinf(float(number)):
        raise _invalid(f"Expected a number, got {text[:40]!r} - at `$.{override.value}`")
    return float(number)


def _amount(cost: Decimal) -> Decimal:
    if cost.is_zero():
        return Decimal(0)
    if not cost.is_finite() or cost < 0 or abs(cost.adjusted()) > _MOST_MAGNITUDE:
        raise _invalid("Expected a number of US dollars, 0 or from 1e-18 to 1e18 - at `$.max_cost_usd`")
    return +cost  # with no more digits than other amounts, however many were sent


def _invalid(text: str) -> InvalidRequest:
    if "unknown field" in text:
        known = ", ".join(override.value for override in Override)
        return InvalidRequest(f"'{FIELD}' is not valid: {plain(text)}; it may have {known}.", param=FIELD)
    return invalid_field(text, inside=FIELD)
