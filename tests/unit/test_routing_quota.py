"""What an account has left: read from headers that every provider writes differently, and counted."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.core.limits import Limits
from meritorder.routing.quota import MinuteWindow, Quota, retry_after_of

NOW, MOMENT = 1000.0, 1_790_000_000.0
NONE = Limits()


def told(**headers: str) -> Quota:
    quota = Quota()
    quota.read({name.replace("_", "-"): value for name, value in headers.items()}, NOW, MOMENT)
    return quota


def wait(quota: Quota, tokens: int = 100, now: float = NOW, limits: Limits = NONE) -> float:
    """For how many seconds a request would be refused."""
    blocked = quota.blocked(limits, tokens, now)
    return 0.0 if blocked is None else blocked[1]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20", 20.0),
        ("0.5", 0.5),
        (" 7 ", 7.0),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("2m59.56s", 179.56),
        ("1d", 86400.0),
        ("350µs", 0.00035),
        (datetime.fromtimestamp(MOMENT + 90, UTC).isoformat().replace("+00:00", "Z"), 90.0),
        (format_datetime(datetime.fromtimestamp(MOMENT + 30, UTC), usegmt=True), 30.0),
        (datetime.fromtimestamp(MOMENT - 90, UTC).isoformat(), 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1s later", None),
        ("5 s", None),
        ("9999-99-99T00:00:00Z", None),
    ],
)
def test_times_are_understood_in_all_their_forms(text: str, seconds: float | None) -> None:
    assert retry_after_of({"retry-after": text}, MOMENT) == (None if seconds is None else pytest.approx(seconds))


def test_milliseconds_are_preferred_where_a_provider_names_them() -> None:
    assert retry_after_of({"retry-after": "1", "retry-after-ms": "250"}, MOMENT) == 0.25


class TestHeaders:
    def test_openais(self) -> None:
        quota = told(x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="6m0s")
        assert wait(quota) == 360.0
        assert quota.blocked(NONE, 100, NOW) == ("has too few requests left in its rate limit for 360.0 s more", 360.0)

    def test_anthropics(self) -> None:
        reset = datetime.fromtimestamp(MOMENT + 12, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        quota = told(anthropic_ratelimit_input_tokens_remaining="50", anthropic_ratelimit_input_tokens_reset=reset)
        assert (wait(quota, tokens=50), wait(quota, tokens=51)) == (0.0, 12.0)

    def test_what_is_left_comes_back_little_by_little_where_the_limit_is_told(self) -> None:
        quota = told(x_ratelimit_limit_tokens="30000", x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="60s")
        assert wait(quota, tokens=500) == pytest.approx(1.0)
        assert wait(quota, tokens=500, now=NOW + 1.01) == 0.0

    def test_more_than_the_limit_is_let_through_after_the_reset(self) -> None:
        quota = told(x_ratelimit_limit_tokens="100", x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="9s")
        assert (wait(quota, tokens=500), wait(quota, tokens=500, now=NOW + 9)) == (9.0, 0.0)

    def test_without_a_reset_a_minute_is_waited(self) -> None:
        assert wait(told(x_ratelimit_remaining_tokens="3")) == 60.0

    def test_requests_that_were_sent_since_are_deducted(self) -> None:
        quota = told(x_ratelimit_remaining_requests="2", x_ratelimit_remaining_tokens="1000")
        quota.sent(100, NOW)
        assert wait(quota) == 0.0
        quota.sent(100, NOW)
        assert wait(quota) == 60.0

    def test_what_was_not_worked_on_is_left_again(self) -> None:
        quota = told(x_ratelimit_remaining_requests="1", x_ratelimit_remaining_tokens="1000")
        quota.sent(1000, NOW)
        assert wait(quota) == 60.0
        quota.unsent(1000, NOW)
        assert wait(quota, tokens=1000) == 0.0

    def test_but_not_where_the_provider_has_said_since_what_is_left(self) -> None:
        quota = told(x_ratelimit_remaining_tokens="1000")
        quota.sent(900, NOW)
        quota.read({"x-ratelimit-remaining-tokens": "50"}, NOW + 1, MOMENT + 1)
        quota.unsent(900, NOW)
        assert wait(quota, tokens=51, now=NOW + 1) == 60.0

    def test_the_latest_headers_count(self) -> None:
        quota = told(x_ratelimit_remaining_requests="0")
        quota.read({"x-ratelimit-remaining-requests": "10"}, NOW + 1, MOMENT + 1)
        assert wait(quota, now=NOW + 1) == 0.0

    def test_retry_after_is_honoured_up_to_an_hour(self) -> None:
        assert (wait(told(retry_after="20")), wait(told(retry_after="86400"))) == (20.0, 3600.0)
        assert wait(told(retry_after="20"), now=NOW + 20) == 0.0

    def test_a_shorter_wish_does_not_end_a_longer_one(self) -> None:
        quota = told(retry_after="20")
        quota.refused(1.0, NOW)
        quota.refused(None, NOW)
        assert wait(quota) == 20.0

    @given(
        st.dictionaries(
            st.sampled_from(
                ["retry-after", "retry-after-ms"]
                + [f"x-ratelimit-{what}-tokens" for what in ("remaining", "reset", "limit")]
                + [f"anthropic-ratelimit-requests-{what}" for what in ("remaining", "reset", "limit")]
            ),
            st.text(max_size=30)
            | st.from_regex(r"[0-9]{1,6}(\.[0-9]+)?(ms|s|m|h|d|Z|e[0-9]{1,4})?[0-9:TZ+-]*", fullmatch=True)
            | st.floats().map(str)
            | st.datetimes().map(lambda one: one.isoformat()),
        ),
        st.floats(0, 4e9),
    )
    def test_whatever_they_say_nobody_waits_for_more_than_an_hour(self, headers: dict[str, str], moment: float) -> None:
        quota = Quota()
        quota.read(headers, NOW, moment)
        assert 0 <= wait(quota) <= 3600
        assert wait(quota, now=NOW + 3600.001) == 0.0


class TestMinute:
    def test_the_requests_of_a_minute_are_counted(self) -> None:
        quota, limits = Quota(), Limits(requests_per_minute=3)
        for second in (0, 1, 2):
            assert wait(quota, now=NOW + second, limits=limits) == 0.0
            quota.sent(10, NOW + second)
        reason, seconds = quota.blocked(limits, 10, NOW + 3) or ("", 0.0)
        assert reason == "has used up its account's 3 requests per minute"
        assert wait(quota, now=NOW + 3 + seconds, limits=limits) == 0.0
        assert 57 <= seconds <= 63

    def test_so_are_the_tokens_and_what_they_were_more_than_was_thought(self) -> None:
        quota, limits = Quota(), Limits(tokens_per_minute=1000)
        quota.sent(400, NOW)
        assert (wait(quota, 600, limits=limits), wait(quota, 601, limits=limits) > 0) == (0.0, True)
        quota.settled(100, NOW + 1)
        assert wait(quota, 600, NOW + 1, limits) > 0

    def test_a_request_of_more_than_a_minutes_tokens_is_let_through_alone(self) -> None:
        quota, limits = Quota(), Limits(tokens_per_minute=1000)
        assert wait(quota, 5000, limits=limits) == 0.0
        quota.sent(1, NOW)
        assert wait(quota, 5000, limits=limits) > 0

    def test_one_huge_request_that_is_refused_blocks_nobody(self) -> None:
        quota, limits = Quota(), Limits(requests_per_minute=1, tokens_per_minute=1000)
        quota.sent(5000, NOW)
        quota.unsent(5000, NOW)
        assert wait(quota, 1000, NOW, limits) == 0.0

    def test_what_is_taken_back_is_that_request_and_no_other(self) -> None:
        minute = MinuteWindow()
        quota = Quota(minute)
        quota.sent(10, NOW)
        quota.sent(20, NOW + 50)
        quota.unsent(10, NOW)
        assert (minute.requests, minute.tokens) == (1, 20)
        quota.sent(30, NOW + 70)  # by when it counts for nothing
        quota.unsent(10, NOW)
        assert (minute.requests, minute.tokens) == (2, 50)

    @given(st.lists(st.tuples(st.floats(0, 40), st.integers(0, 500), st.floats(0, 90)), max_size=30))
    def test_what_is_taken_back_twice_never_leaves_less_than_nothing(
        self, steps: list[tuple[float, int, float]]
    ) -> None:
        minute, now = MinuteWindow(), NOW
        quota = Quota(minute)
        for pause, tokens, ago in steps:
            now += pause
            quota.sent(tokens, now)
            quota.unsent(2 * tokens, now - ago)
            assert minute.requests >= 0
            assert minute.tokens >= 0

    def test_backends_of_one_account_share_it(self) -> None:
        minute = MinuteWindow()
        one, other = Quota(minute), Quota(minute)
        one.sent(10, NOW)
        assert wait(other, limits=Limits(requests_per_minute=1)) > 0

    @given(
        st.lists(st.tuples(st.floats(0, 30), st.integers(1, 500)), max_size=60),
        st.integers(1, 10),
        st.integers(1, 2000),
    )
    def test_no_minute_ever_has_more_than_the_limits(
        self, steps: list[tuple[float, int]], requests: int, tokens: int
    ) -> None:
        quota, limits, now = Quota(), Limits(requests, tokens), NOW
        sent: list[tuple[float, int]] = []
        for pause, size in steps:
            now += pause
            blocked = quota.blocked(limits, size, now)
            if blocked is None:
                quota.sent(size, now)
                sent.append((now, size))
            else:
                assert 0 < blocked[1] <= 65
        for at, _ in sent:
            minute = [size for when, size in sent if at <= when < at + 60]
            assert len(minute) <= requests
            assert sum(minute) <= tokens or len(minute) == 1
