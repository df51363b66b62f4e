"""The sentences of refusals, and which error each situation becomes."""

from decimal import Decimal

import pytest

from meritorder.backends.failures import AttemptFailed, Failure, from_status
from meritorder.core.catalog import Backend, Catalog, Endpoint, Route, Team, Tier
from meritorder.core.errors import NotAllowed, RequestError, UnknownModel
from meritorder.core.pricing import Price
from meritorder.core.request import Caller
from meritorder.ingress.refusals import all_failed, broken_stream, find_route

EVERYTHING = Caller(Team("demo"), "key_1")
ONLY_ASSISTANT = Caller(Team("narrow", frozenset({"assistant"})), "key_2")
CATALOG = Catalog({}, {name: Route(name, ()) for name in ("assistant", "assistant-2", "faq")}, {})


def backend(name: str) -> Backend:
    return Backend(name, Tier.HOSTED, name, name, frozenset(Endpoint), Price(Decimal(1), Decimal(1)))


class TestFindRoute:
    @pytest.mark.parametrize(
        ("caller", "model", "hint"),
        [
            (EVERYTHING, "asistant", "Did you mean 'assistant' or 'assistant-2'?"),
            (ONLY_ASSISTANT, "asistant", "Did you mean 'assistant'?"),
            (EVERYTHING, "gpt", "GET /v1/models lists those that you may call."),
            (ONLY_ASSISTANT, "fa", "GET /v1/models lists those that you may call."),
        ],
    )
    def test_close_names(self, caller: Caller, model: str, hint: str) -> None:
        with pytest.raises(UnknownModel) as caught:
            find_route(CATALOG, caller, model)
        assert caught.value.message == f"The model {model!r} does not exist. {hint}"

    def test_a_name_without_end_is_cut(self) -> None:
        with pytest.raises(UnknownModel) as caught:
            find_route(CATALOG, EVERYTHING, "x" * 1_000_000)
        assert len(caught.value.message) < 400

    @pytest.mark.parametrize(
        ("routes", "may_call"), [(frozenset({"faq", "assistant"}), "assistant, faq"), (frozenset(), "nothing")]
    )
    def test_a_name_that_is_not_allowed(self, routes: frozenset[str], may_call: str) -> None:
        with pytest.raises(NotAllowed) as caught:
            find_route(CATALOG, Caller(Team("t", routes), "key_3"), "assistant-2")
        assert caught.value.message == f"Team 't' may not call 'assistant-2'; it may call {may_call}."


@pytest.mark.parametrize(
    ("failures", "status", "code", "retry_after"),
    [
        pytest.param([(Failure.BUSY, 7.0), (Failure.BUSY, 3.0)], 429, "backends_busy", 3.0, id="all busy"),
        pytest.param([(Failure.BUSY, None)], 429, "backends_busy", 1.0, id="busy and nobody knows for how long"),
        pytest.param([(Failure.TIMEOUT, None)] * 2, 504, "deadline_exceeded", None, id="all too slow"),
        pytest.param([(Failure.BUSY, 7.0), (Failure.TIMEOUT, None)], 502, "backends_failed", None, id="mixed"),
        pytest.param([(Failure.CREDENTIALS, None)], 502, "backends_failed", None, id="our own key is wrong"),
    ],
)
def test_what_failed_attempts_become(
    failures: list[tuple[Failure, float | None]], status: int, code: str, retry_after: float | None
) -> None:
    error = all_failed([(backend(f"b{i}"), AttemptFailed(f, "is odd", after)) for i, (f, after) in enumerate(failures)])
    assert (error.status, error.code, error.retry_after) == (status, code, retry_after)
    assert error.message.startswith("No backend answered: 'b0' is odd")


def test_every_backend_is_named_with_its_reason() -> None:
    error = all_failed(
        [
            (backend("own"), AttemptFailed(Failure.UNREACHABLE, "refused the connection")),
            (backend("hosted/chat"), AttemptFailed(Failure.SERVER_ERROR, "failed (HTTP 500)")),
        ]
    )
    assert error.message == (
        "No backend answered: 'own' refused the connection; 'hosted/chat' failed (HTTP 500). Try again later."
    )


def test_a_broken_stream() -> None:
    error = broken_stream(backend("own"), AttemptFailed(Failure.BROKEN_STREAM, "closed the connection"))
    assert (error.message, error.code) == (
        "'own' closed the connection; the answer is incomplete, send the request again.",
        "stream_broken",
    )


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        *((status, None) for status in (200, 201, 400, 405, 409, 413, 415, 418, 422, 451)),
        *((status, Failure.CREDENTIALS) for status in (401, 402, 403)),
        (404, Failure.NOT_FOUND),
        (408, Failure.TIMEOUT),
        (429, Failure.BUSY),
        *((status, Failure.MALFORMED) for status in (301, 302, 307)),
        *((status, Failure.SERVER_ERROR) for status in (500, 501, 520, 599)),
        *((status, Failure.UNREACHABLE) for status in (502, 503)),
        (504, Failure.TIMEOUT),
    ],
)
def test_what_a_backend_s_status_means(status: int, failure: Failure | None) -> None:
    failed = from_status(status, None)
    assert (failed.failure if failed else None) == failure


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", None),
        ("-3", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    failed = from_status(429, header)
    assert failed is not None
    assert failed.retry_after == seconds


def test_every_error_has_a_status_a_code_and_a_place_in_the_tree() -> None:
    def all_below(kind: type[RequestError]) -> set[type[RequestError]]:
        return {kind, *(one for child in kind.__subclasses__() for one in all_below(child))}

    from meritorder.core import errors

    tree = errors.__doc__ or ""
    ours = {kind for kind in all_below(RequestError) if kind.__module__ == errors.__name__}  # a proxy has its own
    for kind in ours - {RequestError}:
        [line] = [line for line in tree.splitlines() if kind.__name__ in line.split()]
        assert f" {kind.status} " in line
        assert kind.code in line
