"""How many tokens are expected, how many there can be, and what they can cost at most."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.core.catalog import Capabilities, Endpoint, Modality
from meritorder.core.pricing import Rates, charge
from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage
from meritorder.routing.score import dollars, work
from meritorder.routing.tokens import TokenRatio, media_tokens, most_output

REQUEST = InferenceRequest("id", Endpoint.CHAT_COMPLETIONS, "m", False, False, 5000, lambda _: b"", text_bytes=4000)
CHAT = Capabilities(frozenset({Endpoint.CHAT_COMPLETIONS}))


def taught(bytes_per_token: float, *, times: int = 50, output_tokens: int = 40) -> TokenRatio:
    ratio = TokenRatio()
    for _ in range(times):
        ratio.observe(REQUEST, Usage(int(4000 / bytes_per_token) + 8, output_tokens))
    return ratio


class TestInput:
    def test_until_usage_was_seen_the_stated_rules_hold(self) -> None:
        assert (TokenRatio().expected_input(4000), TokenRatio().most_input(4000)) == (1008, 2064)

    def test_a_tokenizer_is_learnt_from_usage(self) -> None:
        assert taught(3.2).expected_input(4000) == pytest.approx(1258, abs=2)
        assert taught(1.5).most_input(4000) == pytest.approx(4000 / 1.2 + 64, abs=2)

    def test_the_bound_is_never_let_down_far(self) -> None:
        assert taught(8.0).most_input(3000) == 1064

    @pytest.mark.parametrize(
        ("request_fields", "usage"),
        [
            pytest.param({}, Usage(2000, 1, estimated=True), id="an estimate"),
            pytest.param({"text_bytes": 200}, Usage(2000, 1), id="a short text"),
            pytest.param({"modalities": frozenset({Modality.IMAGE})}, Usage(2000, 1), id="with an image"),
            pytest.param({}, Usage(0, 0), id="no tokens"),
        ],
    )
    def test_what_says_nothing_on_it_teaches_nothing(self, request_fields: dict[str, object], usage: Usage) -> None:
        ratio = TokenRatio()
        for _ in range(50):
            ratio.observe(replace(REQUEST, **request_fields), usage)  # type: ignore[arg-type]
        assert ratio.expected_input(4000) == 1008

    @given(st.lists(st.integers(1, 10**6)), st.integers(0, 10**7))
    def test_the_bound_is_above_what_is_expected(self, tokens: list[int], text_bytes: int) -> None:
        ratio = TokenRatio()
        for count in tokens:
            ratio.observe(REQUEST, Usage(count, 1))
        assert 0 < ratio.expected_input(text_bytes) <= ratio.most_input(text_bytes) <= text_bytes + 64


class TestOutput:
    @pytest.mark.parametrize(
        ("fields", "capabilities", "expected", "most"),
        [
            pytest.param({}, CHAT, 256, 4096, id="nothing is known"),
            pytest.param({"choices": 2}, CHAT, 512, 8192, id="of each choice"),
            pytest.param({}, replace(CHAT, max_output_tokens=999), 256, 999, id="the backend's limit"),
            pytest.param({"max_output_tokens": 100}, replace(CHAT, max_output_tokens=999), 100, 100, id="the client's"),
            pytest.param({"max_output_tokens": 0}, CHAT, 0, 0, id="no answer"),
            pytest.param({"endpoint": Endpoint.EMBEDDINGS}, CHAT, 0, 0, id="embeddings"),
        ],
    )
    def test_of_an_answer(
        self, fields: dict[str, object], capabilities: Capabilities, expected: int, most: int
    ) -> None:
        request = replace(REQUEST, **fields)  # type: ignore[arg-type]
        assert (TokenRatio().expected_output(request), most_output(request, capabilities)) == (expected, most)

    def test_how_long_answers_are_is_learnt(self) -> None:
        assert taught(4.0, times=1, output_tokens=40).expected_output(REQUEST) == 40


def test_media_count_by_their_size_and_each_modality_with_its_most() -> None:
    image = replace(REQUEST, modalities=frozenset({Modality.IMAGE}))
    assert media_tokens(REQUEST) == (0, 0)
    assert media_tokens(image) == (1000, 5050)
    assert media_tokens(replace(image, body_size=1_004_000)) == (3333, 55_000)
    assert media_tokens(replace(image, modalities=frozenset(Modality), body_size=4000)) == (1000, 10_500)


def test_media_by_their_address_count_by_their_number() -> None:
    images = replace(REQUEST, modalities=frozenset({Modality.IMAGE}), media_items=4, body_size=4000)
    assert media_tokens(images) == (4000, 20_000)
    mixed = replace(images, modalities=frozenset({Modality.IMAGE, Modality.AUDIO}))
    assert media_tokens(mixed) == (4000, 500 + 3 * 5000), "one of each, and the others as those with the most tokens"


_rates = st.decimals(0, 10**6, allow_nan=False)
_all_rates = st.builds(Rates, _rates, _rates, *[st.none() | _rates] * 7)


@given(_all_rates, st.data())
def test_nothing_that_can_come_of_a_request_costs_more_than_its_bound(rates: Rates, data: st.DataObject) -> None:
    most_input, most_answer = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 10**6))
    modalities = data.draw(st.frozensets(st.sampled_from(Modality)))

    def parts(total: int, *allowed: bool) -> list[int]:
        counts = []
        for is_allowed in allowed:
            counts.append(data.draw(st.integers(0, total)) if is_allowed else 0)
            total -= counts[-1]
        return counts

    given_tokens, made_tokens = data.draw(st.integers(0, most_input)), data.draw(st.integers(0, most_answer))
    cached, written, audio, image = parts(
        given_tokens, True, True, Modality.AUDIO in modalities, bool(modalities - {Modality.AUDIO})
    )
    reasoning, spoken, drawn = parts(made_tokens, True, True, True)
    usage = Usage(given_tokens, made_tokens, cached, written, audio, image, reasoning, spoken, drawn)
    assert charge(rates, usage) <= dollars(rates).bound(most_input, most_answer, modalities)


def test_a_bound_is_exact() -> None:
    rates = Rates(Decimal("0.123456789012345678901234567890"), Decimal("1e-30"))
    assert dollars(rates).bound(3, 7, frozenset()) == Decimal("3.70370367037037036703703703677E-7")


def test_what_is_cached_costs_less_and_is_less_work() -> None:
    rate = dollars(Rates(Decimal(2), Decimal(10), cached_input=Decimal("0.2")))
    assert rate.expected(1000, 400, 50) == pytest.approx((600 * 2 + 400 * 0.2 + 50 * 10) / 1e6)
    assert work(1000, 400, 50) == 800
    assert dollars(Rates(Decimal(2), Decimal(10))).expected(1000, 400, 0) == pytest.approx(0.002)
