"""How an attempt fails, and what a backend's refusal means for the next one."""

from collections.abc import Mapping
from enum import StrEnum

import aiohttp

from meritorder.core.usage import Usage


class Failure(StrEnum):
    """Why an attempt failed; the value is a metric label."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    BUSY = "busy"
    CREDENTIALS = "credentials"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    SERVER_ERROR = "server_error"
    MALFORMED = "malformed"
    BROKEN_STREAM = "broken_stream"


_LIMIT_HEADERS = ("x-ratelimit-", "anthropic-ratelimit-", "retry-after")


class AttemptFailed(Exception):
    """The attempt gave nothing that a client can use.

    `reason` is for a person and completes "backend X ..."; `retry_after` is in seconds, where the backend named
    a time. `detail` is for the log alone: what our own proxy says of its provider, whose address it may name.
    `limits` are as in `Answer`. `usage` is what the backend may charge for all the same: a request that it was given
    up on, or tokens that it sent before it broke off. None where it did nothing.
    """

    def __init__(self, failure: Failure, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.failure = failure
        self.reason = reason
        self.retry_after = retry_after
        self.detail = ""
        self.limits: Mapping[str, str] = {}
        self.usage: Usage | None = None


def from_status(status: int, retry_after: str | None) -> AttemptFailed | None:
    """What an HTTP status means; None for success, and where the request itself is at fault: another backend
    would say the same."""
    match status:
        case 401:
            # Never the client's key, which no backend sees: it is ours that is wrong.
            return AttemptFailed(Failure.CREDENTIALS, f"refused the provider key (HTTP {status})")
        case 402:
            return AttemptFailed(Failure.CREDENTIALS, "wants the provider account to be paid (HTTP 402)")
        case 403:
            # The key's rights, the country, or what this one prompt says: another provider may see it differently.
            return AttemptFailed(Failure.FORBIDDEN, "does not allow the request (HTTP 403)")
        case 404:
            return AttemptFailed(Failure.NOT_FOUND, "does not know the model or the endpoint (HTTP 404)")
        case 429:
            return AttemptFailed(Failure.BUSY, "is over its rate limit (HTTP 429)", _seconds(retry_after))
        case 502 | 503:
            return AttemptFailed(Failure.UNREACHABLE, f"is not available (HTTP {status})", _seconds(retry_after))
        case 408 | 504:
            return AttemptFailed(Failure.TIMEOUT, f"did not answer in time (HTTP {status})")
        case _ if status >= 500:
            return AttemptFailed(Failure.SERVER_ERROR, f"failed (HTTP {status})")
        case _ if 300 <= status < 400:
            return AttemptFailed(Failure.MALFORMED, f"answered with a redirect (HTTP {status})")
        case _:
            return None


def limit_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those that speak of rate limits, names in lower case."""
    return {low: value for name, value in headers.items() if (low := name.lower()).startswith(_LIMIT_HEADERS)}


def from_exception(error: BaseException) -> AttemptFailed | None:
    """What an error of the connection means; None where it is none. Addresses stay out of the reason."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return AttemptFailed(Failure.UNREACHABLE, "did not accept the connection in time")
        case TimeoutError():
            return AttemptFailed(Failure.TIMEOUT, "did not answer in time")
        case aiohttp.ClientConnectorError():
            return AttemptFailed(Failure.UNREACHABLE, "refused the connection")
        case aiohttp.ClientError() | OSError():
            return AttemptFailed(Failure.BROKEN_STREAM, "closed the connection")
        case _:
            return None


def _seconds(retry_after: str | None) -> float | None:
    # The other form, a date, is rare in APIs and not worth a clock here.
    try:
        seconds = float(retry_after) if retry_after else 0.0
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None
