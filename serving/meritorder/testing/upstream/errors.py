"""Errors as OpenAI words them: `{"error": {"message", "type", "param", "code"}}`."""

import json
from collections.abc import Mapping


class ApiError(Exception):
    """An answer that is an error. No message may repeat the caller's key."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the error as JSON. It is pure ASCII, so text of any kind in it can be sent."""
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode("ascii")


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return a 400 about one field of the request."""
    return ApiError(400, message, param=param, code=code)


def missing_key() -> ApiError:
    """Return the 401 for a request without a bearer token."""
    message = "You didn't provide an API key. Send it in a header: 'Authorization: Bearer KEY'."
    return ApiError(401, message)


def wrong_key() -> ApiError:
    """Return the 401 for a key that is not the accepted one. Unlike OpenAI's, it shows no part of it."""
    return ApiError(401, "Incorrect API key provided.", code="invalid_api_key")


def unknown_model(model: str) -> ApiError:
    """Return the 404 for a model that this upstream does not have."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")


def unknown_url(method: str, path: str) -> ApiError:
    """Return the 404 for an endpoint that this upstream does not have."""
    return ApiError(404, f"Unknown request URL: {method} {path}.", code="unknown_url")
