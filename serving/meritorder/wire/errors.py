"""Errors as clients see them, in OpenAI's shape: the only place where an error becomes a wire format.

Source: https://platform.openai.com/docs/guides/error-codes/api-errors
"""

import math

import msgspec

from meritorder.core.errors import RequestError
from meritorder.wire.sse import event

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def body(error: RequestError) -> bytes:
    """The JSON body of an error response."""
    shape = {
        "message": error.message,
        "type": _TYPES.get(error.status, "server_error"),
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
