"""Errors as OpenAI words them."""

import json

import pytest

from meritorder.core.errors import (
    BackendsBusy,
    BackendsFailed,
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    NotReady,
    RequestError,
    RequestTimeout,
    Unauthenticated,
    UnknownModel,
)
from meritorder.wire import errors
from meritorder.wire.sse import EventSplitter


@pytest.mark.parametrize(
    ("error", "shape"),
    [
        (
            InvalidRequest("'n' is odd.", param="n", code="invalid_type"),
            {"message": "'n' is odd.", "type": "invalid_request_error", "param": "n", "code": "invalid_type"},
        ),
        (
            UnknownModel("gtp", ["gpt", "gpt-2"]),
            {
                "message": "The model 'gtp' does not exist. Did you mean 'gpt' or 'gpt-2'?",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            },
        ),
        (
            BodyTooLarge(20_000_000),
            {
                "message": "The request body is larger than the limit of 20,000,000 bytes; send a smaller one.",
                "type": "invalid_request_error",
                "param": None,
                "code": "request_too_large",
            },
        ),
        (
            RequestTimeout(30.0),
            {
                "message": "The request did not come whole within 30 s; send it again.",
                "type": "invalid_request_error",
                "param": None,
                "code": "request_timeout",
            },
        ),
        (
            BackendsBusy("Busy."),
            {"message": "Busy.", "type": "rate_limit_error", "param": None, "code": "backends_busy"},
        ),
        (
            BackendsFailed("Failed."),
            {"message": "Failed.", "type": "server_error", "param": None, "code": "backends_failed"},
        ),
        (
            InternalError(),
            {
                "message": "Something went wrong here, and not with your request; send it again, or report its id.",
                "type": "server_error",
                "param": None,
                "code": "internal_error",
            },
        ),
    ],
)
def test_body(error: RequestError, shape: dict[str, str | None]) -> None:
    assert json.loads(errors.body(error)) == {"error": shape}


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (InvalidRequest("x"), {}),
        (Unauthenticated("x"), {"www-authenticate": "Bearer"}),
        (NotReady("x", retry_after=5.0), {"retry-after": "5"}),
        (BackendsBusy("x", retry_after=0.2), {"retry-after": "1"}),
        (BackendsBusy("x", retry_after=2.0001), {"retry-after": "3"}),
    ],
)
def test_headers(error: RequestError, headers: dict[str, str]) -> None:
    assert errors.headers(error) == {"content-type": "application/json"} | headers


@pytest.mark.parametrize("message", ["plain", "two\nlines", "a\n\nblank one", 'quotes "\\ and ü'])
def test_in_a_stream_an_error_is_one_event(message: str) -> None:
    error = BackendsFailed(message, code="stream_broken")
    [event] = EventSplitter().feed(errors.stream_event(error))
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == message
