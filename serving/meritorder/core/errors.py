"""Every error that a client can be given.

    RequestError                      status  code
    ├── InvalidRequest                400     invalid_request, or as given
    │   └── BodyTooLarge              413     request_too_large
    ├── Unauthenticated               401     invalid_api_key
    ├── NotAllowed                    403     model_not_allowed
    ├── UnknownModel                  404     model_not_found
    ├── UnsupportedEndpoint           400     unsupported_endpoint
    ├── NotReady                      503     model_not_ready
    └── BackendsFailed                502     backends_failed
        ├── BackendsBusy              429     backends_busy
        └── DeadlineExceeded          504     deadline_exceeded

A message is one sentence that says what happened, why, and what to do. It never carries a key, a header
value, a prompt, or a backend's address. Which wire format an error takes is for `wire.errors` to say.
"""

from collections.abc import Sequence


class RequestError(Exception):
    """A request that gets an error instead of an answer.

    `param` is the field at fault, dotted as in `messages[0].role`; `retry_after` is in seconds.
    """

    status = 500
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code


class InvalidRequest(RequestError):
    status = 400
    code = "invalid_request"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than the limit of {limit:,} bytes; send a smaller one.")


class Unauthenticated(RequestError):
    status = 401
    code = "invalid_api_key"


class NotAllowed(RequestError):
    status = 403
    code = "model_not_allowed"


class UnknownModel(RequestError):
    status = 404
    code = "model_not_found"

    def __init__(self, model: str, close: Sequence[str]) -> None:
        hint = f" Did you mean {_either(close)}?" if close else " GET /v1/models lists those that you may call."
        super().__init__(f"The model {model!r} does not exist.{hint}", param="model")


class UnsupportedEndpoint(RequestError):
    status = 400
    code = "unsupported_endpoint"


class NotReady(RequestError):
    """No candidate can be tried now, for reasons that pass."""

    status = 503
    code = "model_not_ready"


class BackendsFailed(RequestError):
    """All candidates were tried, and none answered."""

    status = 502
    code = "backends_failed"


class BackendsBusy(BackendsFailed):
    """All candidates were tried, and the last to answer asked to be left alone for a while."""

    status = 429
    code = "backends_busy"


class DeadlineExceeded(BackendsFailed):
    status = 504
    code = "deadline_exceeded"


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)
