"""Log lines: JSON, one each, and nothing in them that is nobody's business."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from meritorder.core.usage import Charge, Outcome, Usage, UsageRecord
from meritorder.telemetry.logs import JsonFormatter, log_fault, log_request

RECORD = UsageRecord(
    id="1",
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
    charges=(
        Charge("hosted/chat", "hosted", Usage(10, 20), Decimal("1E-9")),
        Charge("dearer/chat", "hosted", Usage(12, 0, estimated=True), Decimal("2E-9")),
    ),
    started_at=0.0,
    time_to_first_token=0.125,
    duration=1.23456789,
    arm="canary",
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


def test_a_request_is_one_line_with_the_tokens_of_its_answer_and_the_cost_of_all_attempts(stream: io.StringIO) -> None:
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
        "arm": "canary",
        "backend": "hosted/chat",
        "attempts": 2,
        "outcome": "disconnected",
        "status": 499,
        "input_tokens": 10,
        "output_tokens": 20,
        "cost_usd": "0.000000003",
        "ttft": 0.125,
        "duration": 1.234568,
    }


LIBRARIES = """
import logging
from meritorder.telemetry.logs import configure

configure()
for name in ("alembic.runtime.migration", "watchfiles.main"):
    logging.getLogger(name).info("chatter")
    logging.getLogger(name).warning("a warning")
"""


def test_the_chatter_of_libraries_is_left_out_and_their_warnings_are_not() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, check=True)
    assert [(line["logger"], line["message"]) for line in map(json.loads, done.stderr.splitlines())] == [
        ("alembic.runtime.migration", "a warning"),
        ("watchfiles.main", "a warning"),
    ]


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
