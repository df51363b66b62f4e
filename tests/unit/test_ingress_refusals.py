"""The sentences of refusals, and which error each situation becomes."""

import pytest

from meritorder.backends.failures import AttemptFailed, Failure, from_status
from meritorder.core.catalog import Backend, Capabilities, Catalog, Endpoint, Route, Team, Tier
from meritorder.core.errors import NotAllowed, RequestError, UnknownModel
from meritorder.core.plan import Rejected, Rejection, RoutePlan
from meritorder.core.pricing import FREE
from meritorder.core.request import Caller, InferenceRequest
from meritorder.ingress.refusals import all_failed, broken_stream, find_route, nothing_to_try

EVERYTHING = Caller(Team("demo"), "key_1")
ONLY_ASSISTANT = Caller(Team("narrow", frozenset({"assistant"})), "key_2")
CATALOG = Catalog({}, {name: Route(name, ()) for name in ("assistant", "assistant-2", "faq")}, {})


def backend(name: str) -> Backend:
    return Backend(name, Tier.HOSTED, name, name, Capabilities(frozenset({Endpoint.CHAT_COMPLETIONS})), FREE)


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


def refusal(*rejections: tuple[Rejection, float | None]) -> RequestError:
    """The error where the candidates `b0`, `b1`... are rejected for these reasons."""
    request = InferenceRequest("id", Endpoint.CHAT_COMPLETIONS, "r", False, False, 2, lambda name: b"{}")
    rejected = [
        Rejected(backend(f"b{number}"), rejection, "is odd", wait)
        for number, (rejection, wait) in enumerate(rejections)
    ]
    return nothing_to_try(Route("r", ()), request, RoutePlan((), tuple(rejected)))


class TestNothingToTry:
    PASSING = (Rejection.NOT_READY, Rejection.CIRCUIT_OPEN, Rejection.QUOTA, Rejection.MAX_TTFT)

    @pytest.mark.parametrize(
        ("rejection", "status", "code"),
        [
            (Rejection.ENDPOINT, 400, "unsupported_endpoint"),
            (Rejection.MODALITY, 400, "no_candidate"),
            (Rejection.TOOLS, 400, "no_candidate"),
            (Rejection.STRUCTURED_OUTPUT, 400, "no_candidate"),
            (Rejection.CONTEXT_WINDOW, 400, "context_length_exceeded"),
            (Rejection.NOT_READY, 503, "model_not_ready"),
            (Rejection.CIRCUIT_OPEN, 503, "model_not_ready"),
            (Rejection.QUOTA, 429, "backends_busy"),
            (Rejection.UNPRICED, 403, "unpriced_model"),
            (Rejection.QUALITY, 400, "no_candidate"),
            (Rejection.MAX_COST, 400, "no_candidate"),
            (Rejection.MAX_TTFT, 503, "model_not_ready"),
            (Rejection.EXCLUDED, 400, "no_candidate"),
            (Rejection.OTHER_ARM, 400, "no_candidate"),
        ],
    )
    def test_where_all_candidates_are_rejected_for_the_same_reason(
        self, rejection: Rejection, status: int, code: str
    ) -> None:
        error = refusal((rejection, None), (rejection, None))
        assert (error.status, error.code) == (status, code)

    def test_every_reason_is_told_with_its_backend(self) -> None:
        assert refusal((Rejection.TOOLS, None), (Rejection.MODALITY, None)).message == (
            "No backend of 'r' can take this request: 'b0' is odd; 'b1' is odd. Change the request, or call another "
            "model."
        )

    @pytest.mark.parametrize("passing", PASSING)
    @pytest.mark.parametrize("other", sorted(set(Rejection) - set(PASSING)))
    def test_one_reason_that_passes_makes_it_worth_coming_back(self, passing: Rejection, other: Rejection) -> None:
        error = refusal((other, None), (passing, None))
        assert (error.status, error.code) == (
            (429, "backends_busy") if passing is Rejection.QUOTA else (503, "model_not_ready")
        )
        assert error.retry_after is not None
        assert "Try again later" in error.message

    @pytest.mark.parametrize("other", sorted(set(Rejection) - set(PASSING) - {Rejection.UNPRICED, Rejection.BUDGET}))
    def test_a_missing_price_is_for_the_platform_s_people_whatever_else_there_is(self, other: Rejection) -> None:
        error = refusal((other, None), (Rejection.UNPRICED, None))
        assert (error.status, error.code) == (403, "unpriced_model")
        assert "Have a price added to its Provider." in error.message

    @pytest.mark.parametrize(
        ("waits", "expected"), [((None,), 5.0), ((7.0,), 7.0), ((7.0, 3.0), 3.0), ((None, 7.0), 7.0)]
    )
    @pytest.mark.parametrize("rejection", [Rejection.QUOTA, Rejection.CIRCUIT_OPEN])
    def test_it_says_when_the_first_of_them_may_be_back(
        self, rejection: Rejection, waits: tuple[float | None, ...], expected: float
    ) -> None:
        assert refusal(*((rejection, wait) for wait in waits)).retry_after == expected

    def test_an_endpoint_that_is_not_served_is_told_those_that_are(self) -> None:
        assert refusal((Rejection.ENDPOINT, None)).message == (
            "'r' does not serve /v1/chat/completions; it serves /v1/chat/completions."
        )


@pytest.mark.parametrize(
    ("failures", "status", "code", "retry_after"),
    [
        pytest.param([(Failure.BUSY, 7.0), (Failure.BUSY, 3.0)], 429, "backends_busy", 3.0, id="all busy"),
        pytest.param([(Failure.BUSY, None)], 429, "backends_busy", 1.0, id="busy and nobody knows for how long"),
        pytest.param([(Failure.TIMEOUT, None)] * 2, 504, "deadline_exceeded", None, id="all too slow"),
        pytest.param([(Failure.BUSY, 7.0), (Failure.TIMEOUT, None)], 502, "backends_failed", None, id="mixed"),
        pytest.param([(Failure.CREDENTIALS, None)], 502, "backends_failed", None, id="our own key is wrong"),
        pytest.param([(Failure.BUSY, None), (Failure.BUSY, 9.0)], 429, "backends_busy", 9.0, id="one knows"),
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


@pytest.mark.parametrize(
    ("failures", "passes"),
    [
        ([Failure.CREDENTIALS, Failure.NOT_FOUND, Failure.FORBIDDEN], False),
        ([Failure.FORBIDDEN], False),
        ([Failure.FORBIDDEN, Failure.BUSY], True),
    ],
)
def test_to_try_again_is_advised_where_it_may_help(failures: list[Failure], passes: bool) -> None:
    error = all_failed([(backend("own"), AttemptFailed(failure, "is odd")) for failure in failures])
    advice = "Try again later." if passes else "Ask those who run this platform: it does not pass by itself."
    assert error.message == f"No backend answered: 'own' is odd. {advice}"


def test_who_fails_again_in_the_same_way_is_named_once() -> None:
    failed = AttemptFailed(Failure.SERVER_ERROR, "failed (HTTP 500)")
    busy = AttemptFailed(Failure.BUSY, "is over its rate limit (HTTP 429)")
    own, hosted = backend("own"), backend("hosted/chat")
    assert all_failed([(own, failed), (hosted, busy), (own, failed), (hosted, failed)]).message == (
        "No backend answered: 'own' failed (HTTP 500); 'hosted/chat' is over its rate limit (HTTP 429); "
        "'hosted/chat' failed (HTTP 500). Try again later."
    )


def test_a_request_whose_time_was_over_before_anything_was_tried() -> None:
    error = all_failed([])
    assert (error.status, error.code) == (504, "deadline_exceeded")
    assert error.message == ("The route's time for a request was over before a backend was tried; send it again.")


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
        *((status, Failure.CREDENTIALS) for status in (401, 402)),
        (403, Failure.FORBIDDEN),
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
