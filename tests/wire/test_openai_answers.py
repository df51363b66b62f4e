"""Answers in OpenAI's format: usage, errors in mid-stream, and bytes that are no answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.core.catalog import Endpoint
from meritorder.core.pricing import ServiceTier
from meritorder.core.request import InferenceRequest
from meritorder.core.usage import Usage
from meritorder.wire.answers import (
    ErrorEvent,
    MalformedAnswer,
    StreamReader,
    estimate,
    is_error,
    output_tokens_in,
    whole_answer,
)

CHAT, EMBEDDINGS = Endpoint.CHAT_COMPLETIONS, Endpoint.EMBEDDINGS


def usage_of(endpoint: Endpoint, body: bytes) -> Usage | None:
    return whole_answer(endpoint, body)[0]


def data(json: bytes) -> bytes:
    return b"data: " + json + b"\n\n"


def delta(json: bytes) -> bytes:
    return data(b'{"choices":[{"index":0,"delta":' + json + b"}]}")


class TestTokens:
    @pytest.mark.parametrize(
        ("event", "tokens"),
        [
            pytest.param(delta(b'{"content":"a"}'), 1, id="text"),
            pytest.param(delta(b'{"role":"assistant","content":"a"}'), 1, id="text with a role"),
            pytest.param(delta(b'{"tool_calls":[{"index":0}]}'), 1, id="a tool call"),
            pytest.param(delta(b'{"refusal":"no"}'), 1, id="a refusal"),
            pytest.param(delta(b'{"reasoning_content":"hm"}'), 1, id="a thought"),
            pytest.param(data(b'{"choices":[{"text":"a"}]}'), 1, id="text of a completion"),
            pytest.param(data(b'{"choices":[{"text":"a"},{"text":"b"}]}'), 1, id="several choices"),
            pytest.param(data(b'{"choices":[{"something_new":1}]}'), 1, id="a choice of a new kind"),
            pytest.param(delta(b'{"role":"assistant","content":""}'), 0, id="a role"),
            pytest.param(delta(b'{"role":"assistant","content":null,"refusal":null}'), 0, id="a role and nulls"),
            pytest.param(delta(b"{}"), 0, id="nothing"),
            pytest.param(data(b'{"choices":[{"text":"","finish_reason":"stop"}]}'), 0, id="the end of a completion"),
            pytest.param(data(b'{"choices":[]}'), 0, id="no choice"),
            pytest.param(data(b"{}"), 0, id="an empty object"),
            pytest.param(b": ping\n\n", 0, id="a comment"),
        ],
    )
    def test_an_event_that_says_something_counts(self, event: bytes, tokens: int) -> None:
        reader = StreamReader()
        reader.read(event)
        assert reader.tokens == tokens

    @pytest.mark.parametrize(
        ("event", "tokens"),
        [
            pytest.param(delta(b'{"content":"%s"}' % (b"a" * 16)), 1, id="as long as a token may be"),
            pytest.param(delta(b'{"content":"%s"}' % (b"a" * 17)), 2, id="longer than one"),
            pytest.param(delta(b'{"content":"%s"}' % (b"a" * 400)), 25, id="a whole paragraph"),
            pytest.param(delta(b'{"content":"%s"}' % ("é".encode() * 16)), 2, id="bytes and not characters"),
            pytest.param(data(b'{"choices":[{"text":"%s"}]}' % (b"a" * 33)), 3, id="text of a completion"),
            pytest.param(data(b'{"choices":[{"text":"%b"},{"text":"%b"}]}' % (b"a" * 16, b"b" * 16)), 2, id="choices"),
            pytest.param(delta(b'{"reasoning_content":"%s"}' % (b"a" * 33)), 3, id="a thought"),
            pytest.param(delta(b'{"reasoning":"%s"}' % (b"a" * 33)), 3, id="a thought by its other name"),
            pytest.param(
                delta(b'{"reasoning":"%b","reasoning_content":"%b"}' % (b"a" * 32, b"a" * 32)),
                2,
                id="a thought by both",
            ),
            pytest.param(delta(b'{"refusal":"%s"}' % (b"a" * 33)), 3, id="a refusal"),
            pytest.param(
                delta(
                    b'{"tool_calls":[{"id":"%b","function":{"name":"f","arguments":"%b"}}]}' % (b"i" * 99, b"a" * 32)
                ),
                3,
                id="a tool call, without its id",
            ),
            pytest.param(delta(b'{"function_call":{"arguments":"%s"}}' % (b"a" * 32)), 2, id="a function call"),
            pytest.param(delta(b'{"audio":{"data":"%s"}}' % (b"a" * 999)), 1, id="sound is no text"),
            pytest.param(
                delta(b'{"content":[1],"tool_calls":[7,{"function":[]},{"function":{"name":1}}]}'), 1, id="odd"
            ),
        ],
    )
    def test_an_event_with_more_text_than_a_token_has_counts_as_several(self, event: bytes, tokens: int) -> None:
        reader = StreamReader()
        reader.read(event)
        assert reader.tokens == tokens


class TestServiceTier:
    @pytest.mark.parametrize(
        ("said", "tier"),
        [
            *((b'"%s"' % tier.value.encode(), tier) for tier in ServiceTier),
            *((other, None) for other in (b'"auto"', b'"scale"', b"null", b"7", b"[]", b"{}")),
        ],
    )
    def test_it_is_what_the_answer_says(self, said: bytes, tier: ServiceTier | None) -> None:
        answer = b'{"choices":[],"service_tier":' + said + b"}"
        reader = StreamReader()
        reader.read(data(answer))
        assert (reader.service_tier, whole_answer(CHAT, answer)[1]) == (tier, tier)

    def test_events_that_say_nothing_of_it_do_not_undo_it(self) -> None:
        reader = StreamReader()
        for event in (
            b'{"choices":[],"service_tier":"flex"}',
            b'{"choices":[]}',
            b'{"choices":[],"service_tier":null}',
        ):
            reader.read(data(event))
        assert reader.service_tier is ServiceTier.FLEX


class TestUsage:
    @pytest.mark.parametrize(
        ("usage", "expected"),
        [
            (b'{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}', Usage(3, 4)),
            (b'{"prompt_tokens":0,"completion_tokens":0}', Usage()),
            (b'{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":5}}', Usage(9, 1, 5)),
            (b'{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":null}', Usage(9, 1)),
            (b'{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":null}}', Usage(9, 1)),
            (b'{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":50}}', Usage(9, 1, 9)),
            (b"{}", None),
            (b'{"input_tokens":9,"output_tokens":500}', Usage(9, 500)),
            (b'{"input_tokens":9}', None),
            (b'{"prompt_tokens":9,"output_tokens":500}', None),
            (b'{"prompt_tokens":3}', None),
            (b'{"prompt_tokens":3,"completion_tokens":null}', None),
            (b'{"prompt_tokens":3,"completion_tokens":"4"}', None),
            (b'{"prompt_tokens":3,"completion_tokens":true}', None),
            (b'{"prompt_tokens":-1,"completion_tokens":4}', None),
            (b'{"prompt_tokens":"3","completion_tokens":4}', None),
            (b'{"prompt_tokens":1e99,"completion_tokens":4}', None),
            (b'{"prompt_tokens":99999999999999999999,"completion_tokens":4}', None),
            (b"null", None),
            (b"[]", None),
            (b'"many"', None),
        ],
    )
    def test_what_is_reported(self, usage: bytes, expected: Usage | None) -> None:
        assert usage_of(CHAT, b'{"choices":[],"usage":' + usage + b"}") == expected
        reader = StreamReader()
        reader.read(data(b'{"choices":[],"usage":' + usage + b"}"))
        assert reader.usage == expected

    @pytest.mark.parametrize(
        ("usage", "expected"),
        [
            (b'{"prompt_tokens":3,"total_tokens":3}', Usage(3, 0)),
            (b'{"prompt_tokens":3,"completion_tokens":0}', Usage(3, 0)),
            (b'{"prompt_tokens":3,"completion_tokens":null}', Usage(3, 0)),
            (b'{"prompt_tokens":3,"completion_tokens":"x"}', None),
            (b'{"total_tokens":3}', None),
        ],
    )
    def test_embeddings_have_no_output_to_report(self, usage: bytes, expected: Usage | None) -> None:
        assert usage_of(EMBEDDINGS, b'{"data":[],"usage":' + usage + b"}") == expected

    def test_an_answer_without_usage_reports_none(self) -> None:
        assert usage_of(CHAT, b'{"choices":[]}') is None

    @pytest.mark.parametrize(
        ("event", "usage_only"),
        [
            (b'{"choices":[],"usage":{}}', True),
            (b'{"usage":{}}', True),
            (b'{"choices":[{"delta":{}}],"usage":{}}', False),
            (b'{"choices":[],"usage":null}', False),
            (b'{"choices":[]}', False),
        ],
    )
    def test_an_event_with_nothing_but_usage_is_told_apart(self, event: bytes, usage_only: bool) -> None:
        assert StreamReader().read(data(event)) is usage_only

    def test_the_last_report_counts(self) -> None:
        reader = StreamReader()
        for count in (1, 2, 3):
            reader.read(data(b'{"choices":[{}],"usage":{"prompt_tokens":5,"completion_tokens":%d}}' % count))
        assert reader.usage == Usage(5, 3)

    def test_a_report_that_cannot_be_read_does_not_undo_one_that_could(self) -> None:
        reader = StreamReader()
        reader.read(data(b'{"choices":[{}],"usage":{"prompt_tokens":5,"completion_tokens":1}}'))
        reader.read(data(b'{"choices":[],"usage":{}}'))
        assert reader.usage == Usage(5, 1)

    @pytest.mark.parametrize(("text_bytes", "tokens"), [(0, 1), (3, 1), (4, 1), (5, 2), (400, 100)])
    def test_an_estimate_is_of_the_text_and_not_of_the_images_beside_it(self, text_bytes: int, tokens: int) -> None:
        request = InferenceRequest("r", CHAT, "m", True, False, 20_000_000, lambda name: b"", text_bytes)
        assert estimate(request, 7) == Usage(tokens, 7, estimated=True)

    @pytest.mark.parametrize(
        ("endpoint", "size", "tokens"),
        [
            (CHAT, 0, 1),
            (CHAT, 3, 1),
            (CHAT, 5, 2),
            (CHAT, 400, 100),
            (Endpoint.COMPLETIONS, 400, 100),
            (EMBEDDINGS, 9, 0),
        ],
    )
    def test_an_estimate_of_a_whole_answer(self, endpoint: Endpoint, size: int, tokens: int) -> None:
        assert output_tokens_in(endpoint, b"x" * size) == tokens


def reported(**usage: Any) -> Usage | None:
    return usage_of(CHAT, json.dumps({"choices": [], "usage": usage}).encode())


nonsense: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just({}) | st.just([])
)
counts = st.integers(min_value=0, max_value=50) | nonsense
names = st.sampled_from(
    ["cached_tokens", "cache_write_tokens", "cache_creation_tokens", "audio_tokens", "image_tokens", "reasoning_tokens"]
)
details = st.dictionaries(names, counts) | nonsense
reports = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        [
            *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"),
            *("cache_read_input_tokens", "cache_creation_input_tokens"),
        ],
        counts,
    )
    | dict.fromkeys(
        [
            *("prompt_tokens_details", "completion_tokens_details"),
            *("input_tokens_details", "output_tokens_details"),
        ],
        details,
    ),
)


class TestPartsOfUsage:
    """Each backend's way to say which tokens have a rate of their own."""

    def test_openai(self) -> None:
        assert reported(
            prompt_tokens=100,
            completion_tokens=50,
            total_tokens=150,
            prompt_tokens_details={
                "cached_tokens": 40,
                "cache_write_tokens": 30,
                "audio_tokens": 20,
                "image_tokens": 5,
                "text_tokens": 75,
            },
            completion_tokens_details={
                "reasoning_tokens": 25,
                "audio_tokens": 10,
                "image_tokens": 4,
                "rejected_prediction_tokens": 1,
            },
        ) == Usage(100, 50, 40, 30, 20, 5, 25, 10, 4)

    def test_the_newer_spelling_of_openai(self) -> None:
        assert reported(
            input_tokens=100,
            output_tokens=50,
            total_tokens=150,
            input_tokens_details={"cached_tokens": 40, "cache_write_tokens": 30},
            output_tokens_details={"reasoning_tokens": 25},
        ) == Usage(100, 50, cached_input_tokens=40, cache_write_tokens=30, reasoning_tokens=25)

    def test_xai_counts_reasoning_beside_the_completion(self) -> None:
        usage = reported(
            prompt_tokens=2640,
            completion_tokens=182,
            total_tokens=3494,
            prompt_tokens_details={"text_tokens": 2640, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 473},
            completion_tokens_details={"reasoning_tokens": 672, "audio_tokens": 0},
        )
        assert usage == Usage(2640, 854, 473, reasoning_tokens=672)

    def test_litellm(self) -> None:
        usage = reported(
            prompt_tokens=100,
            completion_tokens=5,
            prompt_tokens_details={"cached_tokens": 40, "cache_creation_tokens": 30},
            cache_read_input_tokens=40,
            cache_creation_input_tokens=30,
        )
        assert usage == Usage(100, 5, 40, 30)

    def test_anthropic_counts_its_cache_beside_the_input(self) -> None:
        usage = reported(input_tokens=10, output_tokens=5, cache_read_input_tokens=70, cache_creation_input_tokens=20)
        assert usage == Usage(100, 5, 70, 20)

    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            pytest.param({"cached_tokens": 50}, Usage(9, 1, 9), id="one is more than the whole"),
            pytest.param(
                {"cached_tokens": 9, "audio_tokens": 6, "image_tokens": 2},
                Usage(9, 1, 1, 0, 6, 2),
                id="they overlap: the cheapest is cut",
            ),
            pytest.param({"cached_tokens": -1, "audio_tokens": True, "image_tokens": "2"}, Usage(9, 1), id="no counts"),
            pytest.param(None, Usage(9, 1), id="none"),
            pytest.param([], Usage(9, 1), id="a list"),
        ],
    )
    def test_parts_that_make_no_sense_are_cut_to_the_whole(self, parts: Any, expected: Usage) -> None:
        assert reported(prompt_tokens=9, completion_tokens=1, prompt_tokens_details=parts) == expected

    @given(reports)
    def test_whatever_is_reported_is_usage_or_nothing(self, report: dict[str, Any]) -> None:
        body = json.dumps({"choices": [], "usage": report}).encode()
        try:
            usage = usage_of(CHAT, body)
        except MalformedAnswer:
            assert b"NaN" in body or b"Infinity" in body  # is not JSON
        else:
            assert usage is None or not usage.estimated


class TestEnds:
    @pytest.mark.parametrize("event", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"data:  [DONE] \n\n"])
    def test_done(self, event: bytes) -> None:
        reader = StreamReader()
        assert reader.read(event) is False
        assert reader.done

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (b'{"message":"m","code":500}', 500),
            (b'{"message":"m","code":"server_error"}', None),
            (b'{"message":"m","code":12}', None),
            (b'"a text"', None),
            (b"{}", None),
        ],
    )
    def test_an_error_event(self, error: bytes, status: int | None) -> None:
        with pytest.raises(ErrorEvent) as caught:
            StreamReader().read(data(b'{"error":' + error + b"}"))
        assert caught.value.status == status

    def test_an_error_that_is_null_is_none(self) -> None:
        assert StreamReader().read(data(b'{"error":null,"choices":[]}')) is False

    @pytest.mark.parametrize(
        "json", [b"", b"{", b"[]", b"text", b'"text"', b'{"choices":{}}', b'{"choices":[1]}', b"\xff", b"[" * 100_000]
    )
    def test_what_is_no_answer(self, json: bytes) -> None:
        with pytest.raises(MalformedAnswer):
            StreamReader().read(data(json))
        with pytest.raises(MalformedAnswer):
            usage_of(CHAT, json)

    @given(event=st.binary(max_size=100))
    def test_no_bytes_do_more_than_be_malformed(self, event: bytes) -> None:
        reader = StreamReader()
        try:
            reader.read(event + b"\n\n")
        except (MalformedAnswer, ErrorEvent):
            assert not reader.done


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"m"}}', True),
        (b'{"object":"error","message":"m"}', True),
        (b'{"detail":[{"loc":["body"],"msg":"m"}]}', True),
        (b'{"choices":7}', True),
        (b"{}", True),
        (b"[]", False),
        (b'"no"', False),
        (b'{"detail":', False),
        (b'{"detail":' + b"[" * 100_000, False),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_an_error_that_a_client_can_read(body: bytes, expected: bool) -> None:
    assert is_error(body) is expected
