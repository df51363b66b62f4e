"""Log lines: JSON, one each, and nothing in them that is nobody's business."""

import io
import json
import logging
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from meritorder.core.usage import Outcome, Usage, UsageRecord
from meritorder.telemetry.logs import JsonFormatter, log_fault, log_request

RECORD = UsageRecord(
    request_id="req_1",
    team="demo",
    key_id="key_1",
    route="assistant",
    endpoint="chat/completions",
    backend="hosted/chat",
    tier="hosted",
    attempts=2,
    outcome=Outcome.DISCONNECTED,
    status=499,
    usage=Usage(10, 20),
    cost=Decimal("1E-9"),
    started_at=0.0,
    time_to_first_token=0.125,
    duration=1.23456789,
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("meritorder")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_line(stream: io.StringIO) -> None:
    log_request(RECORD)
    [line] = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "meritorder.requests",
        "message": "request",
        "request_id": "req_1",
        "team": "demo",
        "key_id": "key_1",
        "route": "assistant",
        "endpoint": "chat/completions",
        "backend": "hosted/chat",
        "attempts": 2,
        "outcome": "disconnected",
        "status": 499,
        "input_tokens": 10,
        "output_tokens": 20,
        "cost_usd": "0.000000001",
        "ttft": 0.125,
        "duration": 1.234568,
    }


def test_a_message_of_several_lines_is_one_line(stream: io.StringIO) -> None:
    logging.getLogger("meritorder.x").error("one\ntwo %s", "thr\nee")
    assert [line["message"] for line in lines(stream)] == ["one\ntwo thr\nee"]


def test_a_fault_tells_what_and_where_and_not_what_the_exception_says(stream: io.StringIO) -> None:
    try:
        raise ConnectionError("Authorization: Bearer mo-secret to 10.0.0.7 failed")
    except ConnectionError as error:
        log_fault("req_1", error)
    [line] = lines(stream)
    assert (line["request_id"], line["exception"], line["level"]) == ("req_1", "ConnectionError", "error")
    [place] = line["at"]
    assert place.endswith("test_a_fault_tells_what_and_where_and_not_what_the_exception_says")
    assert "secret" not in stream.getvalue()
    assert "10.0.0.7" not in stream.getvalue()
