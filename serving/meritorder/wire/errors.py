"""Errors as clients see them, in OpenAI's shape: the only place where an error becomes a wire format.

Source: https://platform.openai.com/docs/guides/error-codes/api-errors
"""

import math

import msgspec

from meritorder.core.errors import RequestError
from meritorder.wire.sse import event


def body(error: RequestError) -> bytes:
    """The JSON body of an error response."""
    shape = {
        "message": error.message,
        "type": _type(error.status),
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": shape})


def headers(error: RequestError) -> dict[str, str]:
    """The response headers that belong to an error."""
    made = {"content-type": "application/json"}
    if error.status == 401:
        made["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        made["retry-after"] = str(math.ceil(error.retry_after))
    return made


def stream_event(error: RequestError) -> bytes:
    """The last event of a stream that broke after its first byte. No `[DONE]` follows it."""
    return event(body(error))


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
