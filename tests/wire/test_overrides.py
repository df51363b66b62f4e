"""What a request may ask of the routing, in its body or in headers."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from meritorder.core.catalog import Endpoint
from meritorder.core.errors import InvalidRequest
from meritorder.core.request import InferenceRequest, Overrides
from meritorder.wire.openai import parse_request


def parsed(overrides: Any = None, headers: dict[bytes, bytes] | None = None) -> InferenceRequest:
    fields: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    if overrides is not None:
        fields["meritorder"] = overrides
    return parse_request("req_1", Endpoint.CHAT_COMPLETIONS, msgspec.json.encode(fields), headers or {})


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        pytest.param(None, {}, Overrides(), id="nothing"),
        pytest.param({}, {}, Overrides(), id="an empty object"),
        pytest.param({"max_cost_usd": "0.002"}, {}, Overrides(max_cost=Decimal("0.002")), id="money as a string"),
        pytest.param({"max_cost_usd": 0.002}, {}, Overrides(max_cost=Decimal("0.002")), id="money as a number, exact"),
        pytest.param({"max_cost_usd": "0e999999999"}, {}, Overrides(max_cost=Decimal(0)), id="nothing, at length"),
        pytest.param({"max_ttft_ms": 250}, {}, Overrides(max_ttft=0.25), id="milliseconds become seconds"),
        pytest.param({"min_quality": 0.8}, {}, Overrides(min_quality=0.8), id="quality"),
        pytest.param({"backend": "p/m"}, {}, Overrides(backend="p/m"), id="a pinned backend"),
        pytest.param({"exclude": ["a", "b"]}, {}, Overrides(exclude=frozenset("ab")), id="excluded ones"),
        pytest.param(
            None,
            {
                b"x-meritorder-max-cost-usd": b"0.002",
                b"x-meritorder-max-ttft-ms": b"250",
                b"x-meritorder-min-quality": b"0.8",
                b"x-meritorder-backend": b"p/m",
                b"x-meritorder-exclude": b"a, b",
            },
            Overrides(Decimal("0.002"), 0.25, 0.8, "p/m", frozenset("ab")),
            id="all of them as headers",
        ),
        pytest.param(
            {"max_ttft_ms": 1000},
            {b"x-meritorder-max-ttft-ms": b"250", b"x-meritorder-backend": b"a"},
            Overrides(max_ttft=1.0, backend="a"),
            id="the body wins, field by field",
        ),
    ],
)
def test_what_is_asked(body: Any, headers: dict[bytes, bytes], expected: Overrides) -> None:
    assert parsed(body, headers).overrides == expected


@pytest.mark.parametrize(
    ("body", "headers", "param", "message"),
    [
        (
            {"max_price": 1},
            {},
            "meritorder",
            "'meritorder' is not valid: object contains unknown field max_price; it may have max_cost_usd, "
            "max_ttft_ms, min_quality, backend, exclude.",
        ),
        (5, {}, "meritorder", "'meritorder' is not valid: expected object or null, got int."),
        (
            {"min_quality": 1.5},
            {},
            "meritorder.min_quality",
            "'meritorder.min_quality' is not valid: expected float <= 1.0.",
        ),
        *(
            (
                {"max_cost_usd": money},
                {},
                "meritorder.max_cost_usd",
                "'meritorder.max_cost_usd' is not valid: expected a number of US dollars, 0 or from 1e-18 to 1e18.",
            )
            for money in ("-1", "NaN", "sNaN", "Infinity", "1e19", "1e-19", "1e999999999", "-0.1e-999999999")
        ),
        *(
            (
                None,
                {f"x-meritorder-{name.replace('_', '-')}".encode(): number},
                f"meritorder.{name}",
                f"'meritorder.{name}' is not valid: expected a number, got '{number.decode()}'.",
            )
            for name in ("max_ttft_ms", "min_quality")
            for number in (b"sNaN", b"NaN", b"inf", b"1e999")
        ),
        (
            {"backend": "x" * 301},
            {},
            "meritorder.backend",
            "'meritorder.backend' is not valid: expected string of length <= 300.",
        ),
        (
            {"exclude": "a"},
            {},
            "meritorder.exclude",
            "'meritorder.exclude' is not valid: expected array, got string.",
        ),
        (
            None,
            {b"x-meritorder-max-ttft-ms": b"soon"},
            "meritorder.max_ttft_ms",
            "'meritorder.max_ttft_ms' is not valid: expected a number, got 'soon'.",
        ),
    ],
)
def test_what_is_refused(body: Any, headers: dict[bytes, bytes], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parsed(body, headers)
    assert (refused.value.param, refused.value.message) == (param, message)


def test_of_a_very_long_number_as_many_digits_count_as_money_has() -> None:
    cost = parsed({"max_cost_usd": "0." + "1" * 100_000}).overrides.max_cost
    assert cost is not None
    assert (len(f"{cost:f}"), cost) == (30, Decimal("0." + "1" * 28))


def test_backends_never_see_it() -> None:
    sent = msgspec.json.decode(parsed({"min_quality": 0.5}).body_for("upstream"))
    assert sent == {"model": "upstream", "messages": [{"role": "user", "content": "hi"}]}


def test_the_session_is_a_header() -> None:
    assert parsed().session is None
    assert parsed(headers={b"x-meritorder-session": b"tab-1"}).session == "tab-1"
