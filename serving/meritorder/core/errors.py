"""Every error that a client can be given.

    RequestError                      status  code
    ├── InvalidRequest                400     invalid_request, invalid_json, invalid_type, missing_field
    │   └── BodyTooLarge              413     request_too_large
    ├── RequestTimeout                408     request_timeout
    ├── Unauthenticated               401     invalid_api_key, or missing_api_key
    ├── NotAllowed                    403     model_not_allowed, team_not_found, override_not_allowed,
    │                                         unpriced_model, team_key_required, admin_key_required
    ├── UnknownModel                  404     model_not_found
    ├── UnknownKey                    404     key_not_found
    ├── UnknownUrl                    404     unknown_url
    │   └── MethodNotAllowed          405     method_not_allowed
    ├── UnsupportedEndpoint           400     unsupported_endpoint
    ├── NoCandidate                   400     no_candidate, or context_length_exceeded
    ├── BudgetExceeded                402     budget_exceeded
    ├── LimitExceeded                 429     rate_limit_exceeded
    ├── NotReady                      503     model_not_ready
    ├── LedgerUnavailable             503     ledger_unavailable
    ├── ShuttingDown                  503     shutting_down
    ├── InternalError                 500     internal_error
    └── BackendsFailed                502     backends_failed, or stream_broken
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


class RequestTimeout(RequestError):
    status = 408
    code = "request_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request did not come whole within {seconds:g} s; send it again.")


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


class UnknownKey(RequestError):
    status = 404
    code = "key_not_found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"No key {key_id!r} is in force; GET /admin/v1/keys lists those there are.", param="id")


class UnknownUrl(RequestError):
    status = 404
    code = "unknown_url"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(
            f"{method} {path} is not served here; POST /v1/chat/completions, /v1/completions or /v1/embeddings, "
            "or GET /v1/models."
        )


class MethodNotAllowed(UnknownUrl):
    status = 405
    code = "method_not_allowed"


class UnsupportedEndpoint(RequestError):
    status = 400
    code = "unsupported_endpoint"


class NoCandidate(RequestError):
    """No candidate of the route can do what the request needs, now or later."""

    status = 400
    code = "no_candidate"


class BudgetExceeded(RequestError):
    """The money of a period is spent; `retry_after` is when the next one begins."""

    status = 402
    code = "budget_exceeded"


class LimitExceeded(RequestError):
    """Too many requests or tokens in a minute, or too many requests at once."""

    status = 429
    code = "rate_limit_exceeded"


class LedgerUnavailable(RequestError):
    """The database cannot be asked, and what is known without it does not suffice to let this request in."""

    status = 503
    code = "ledger_unavailable"


class NotReady(RequestError):
    """No candidate can be tried now, for reasons that pass."""

    status = 503
    code = "model_not_ready"


class ShuttingDown(RequestError):
    """The ingress ends, and the request has outlasted the time that was left for it."""

    status = 503
    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("The service restarts and the answer is not complete; send the request again.")


class InternalError(RequestError):
    """A fault of this program; what it is stands in the log, under the request's id."""

    def __init__(self) -> None:
        super().__init__("Something went wrong here, and not with your request; send it again, or report its id.")


class BackendsFailed(RequestError):
    """All candidates were tried, and none answered."""

    status = 502
    code = "backends_failed"


class BackendsBusy(BackendsFailed):
    """All candidates were tried, and all asked to be left alone for a while."""

    status = 429
    code = "backends_busy"


class DeadlineExceeded(BackendsFailed):
    status = 504
    code = "deadline_exceeded"


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)
