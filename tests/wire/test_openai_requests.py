"""Requests in OpenAI's format: what is refused and how, and that all else passes unchanged."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.core.catalog import Endpoint
from meritorder.core.errors import InvalidRequest
from meritorder.wire.openai import parse_request

CHAT, COMPLETIONS, EMBEDDINGS = Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS
MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


def refused(endpoint: Endpoint, body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request("req_1", endpoint, body)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("endpoint", "body", "param", "message"),
    [
        (CHAT, b'{"model":"m"}', "messages", "'messages' is required and is missing."),
        (CHAT, b"{" + MESSAGES + b"}", "model", "'model' is required and is missing."),
        (CHAT, b'{"model":"",' + MESSAGES + b"}", "model", "'model' is not valid: expected string of length >= 1."),
        (CHAT, b'{"model":5,' + MESSAGES + b"}", "model", "'model' is not valid: expected string, got int."),
        (CHAT, b'{"model":null,' + MESSAGES + b"}", "model", "'model' is not valid: expected string, got null."),
        (CHAT, b'{"model":"m","messages":[]}', "messages", "'messages' is not valid: expected array of length >= 1."),
        (CHAT, b'{"model":"m","messages":{}}', "messages", "'messages' is not valid: expected array, got object."),
        (
            CHAT,
            b'{"model":"m","messages":["hi"]}',
            "messages[0]",
            "'messages[0]' is not valid: expected object, got string.",
        ),
        (
            CHAT,
            b'{"model":"m","messages":[{"role":"u"},{}]}',
            "messages[1].role",
            "'messages[1].role' is required and is missing.",
        ),
        (
            CHAT,
            b'{"model":"m","messages":[{"role":7}]}',
            "messages[0].role",
            "'messages[0].role' is not valid: expected string, got int.",
        ),
        (
            CHAT,
            b'{"model":"m","messages":[{"role":"u","content":{}}]}',
            "messages[0].content",
            "'messages[0].content' is not valid: expected string or array or null, got object.",
        ),
        (
            CHAT,
            b'{"model":"m","stream":1,' + MESSAGES + b"}",
            "stream",
            "'stream' is not valid: expected bool or null, got int.",
        ),
        (CHAT, b'{"model":"m","n":0,' + MESSAGES + b"}", "n", "'n' is not valid: expected int >= 1."),
        (CHAT, b'{"model":"m","n":129,' + MESSAGES + b"}", "n", "'n' is not valid: expected int <= 128."),
        (COMPLETIONS, b'{"model":"m","prompt":"","n":129}', "n", "'n' is not valid: expected int <= 128."),
        (
            COMPLETIONS,
            b'{"model":"m","prompt":"","best_of":129}',
            "best_of",
            "'best_of' is not valid: expected int <= 128.",
        ),
        (
            CHAT,
            b'{"model":"m","max_tokens":-1,' + MESSAGES + b"}",
            "max_tokens",
            "'max_tokens' is not valid: expected int >= 0.",
        ),
        (
            CHAT,
            b'{"model":"m","max_tokens":1.5,' + MESSAGES + b"}",
            "max_tokens",
            "'max_tokens' is not valid: expected int or null, got float.",
        ),
        (
            CHAT,
            b'{"model":"m","temperature":"1",' + MESSAGES + b"}",
            "temperature",
            "'temperature' is not valid: expected float or null, got string.",
        ),
        (
            CHAT,
            b'{"model":"m","stream":true,"stream_options":{"include_usage":"yes"},' + MESSAGES + b"}",
            "stream_options.include_usage",
            "'stream_options.include_usage' is not valid: expected bool or null, got string.",
        ),
        (
            CHAT,
            b'{"model":"m","stream_options":{"include_usage":true},' + MESSAGES + b"}",
            "stream_options",
            "'stream_options' is only allowed when 'stream' is true; remove it or set 'stream'.",
        ),
        (COMPLETIONS, b'{"model":"m"}', "prompt", "'prompt' is required and is missing."),
        (
            COMPLETIONS,
            b'{"model":"m","prompt":3}',
            "prompt",
            "'prompt' is not valid: expected string or array, got int.",
        ),
        (EMBEDDINGS, b'{"model":"m"}', "input", "'input' is required and is missing."),
        (
            EMBEDDINGS,
            b'{"model":"m","input":"x","dimensions":0}',
            "dimensions",
            "'dimensions' is not valid: expected int >= 1.",
        ),
        (CHAT, b"[]", None, "The body must be a JSON object: expected object, got array."),
        (CHAT, b'"text"', None, "The body must be a JSON object: expected object, got string."),
        (CHAT, b"", None, "The body is not valid JSON: it is empty."),
        (CHAT, b'{"model":"m"', None, "The body is not valid JSON: input data was truncated."),
        (
            CHAT,
            b'{"model":"m",' + MESSAGES + b"} {",
            None,
            "The body is not valid JSON: trailing characters (byte 59).",
        ),
        (CHAT, b"\xef\xbb\xbf{}", None, "The body is not valid JSON: invalid character (byte 0)."),
        (CHAT, b'{"model":"m\xff",' + MESSAGES + b"}", None, "The body is not valid JSON: it is not UTF-8."),
        (CHAT, b'{"model":"m","\xff":1,' + MESSAGES + b"}", None, "The body is not valid JSON: it is not UTF-8."),
        (CHAT, b'{"model":"m","x":' + b"[" * 100_000, None, "The body is not valid JSON: it is nested too deeply."),
    ],
    ids=lambda value: value[:60] if isinstance(value, bytes) else None,
)
def test_a_bad_body_is_refused_with_the_field_and_a_sentence(
    endpoint: Endpoint, body: bytes, param: str | None, message: str
) -> None:
    error = refused(endpoint, body)
    assert (error.param, error.message) == (param, message)


SECRET = "the-prompt-of-somebody"


@pytest.mark.parametrize(
    "field",
    [
        {"model": [SECRET]},
        {"messages": SECRET},
        {"messages": [SECRET]},
        {"messages": [{SECRET: SECRET}]},
        {"messages": [{"role": "u", "content": {SECRET: SECRET}}]},
        {"stream": SECRET},
        {"n": SECRET},
        {"temperature": SECRET},
        {"stream_options": SECRET},
    ],
    ids=str,
)
def test_a_refusal_never_quotes_what_was_sent(field: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{"role": "u"}], "stream": True, **field}
    error = refused(CHAT, json.dumps(body).encode())
    assert SECRET not in error.message
    assert SECRET not in str(error.param)


@pytest.mark.parametrize(
    ("body", "stream", "wants_usage"),
    [
        (b"{}", False, False),
        (b'{"stream":null}', False, False),
        (b'{"stream":false}', False, False),
        (b'{"stream":false,"stream_options":null}', False, False),
        (b'{"stream":true}', True, False),
        (b'{"stream":true,"stream_options":null}', True, False),
        (b'{"stream":true,"stream_options":{}}', True, False),
        (b'{"stream":true,"stream_options":{"include_usage":null}}', True, False),
        (b'{"stream":true,"stream_options":{"include_usage":true}}', True, True),
    ],
)
def test_what_dispatch_sees(body: bytes, stream: bool, wants_usage: bool) -> None:
    whole = b'{"model":"m",' + MESSAGES + (b"," if body != b"{}" else b"") + body[1:]
    request = parse_request("req_1", CHAT, whole)
    assert (request.id, request.endpoint, request.model) == ("req_1", CHAT, "m")
    assert (request.stream, request.wants_usage_chunk, request.body_size) == (stream, wants_usage, len(whole))


@pytest.mark.parametrize(
    "content", [b'"text"', b"null", b'[{"type":"image_url","image_url":{"url":"data:..."}}]', b"[]"]
)
def test_content_may_be_text_or_parts_or_nothing(content: bytes) -> None:
    parse_request("req_1", CHAT, b'{"model":"m","messages":[{"role":"tool","content":' + content + b"}]}")


@pytest.mark.parametrize("given_input", [b'"text"', b'["a","b"]', b"[1,2,3]", b"[[1,2],[3]]"])
def test_input_may_be_text_or_tokens_or_many(given_input: bytes) -> None:
    parse_request("req_1", EMBEDDINGS, b'{"model":"m","input":' + given_input + b"}")
    parse_request("req_1", COMPLETIONS, b'{"model":"m","prompt":' + given_input + b"}")


def test_stream_means_nothing_to_embeddings() -> None:
    request = parse_request("req_1", EMBEDDINGS, b'{"model":"m","input":"x","stream":true}')
    assert not request.stream
    assert request.body_for("up") == b'{"model":"up","input":"x","stream":true}'


def test_a_field_that_comes_twice_is_read_and_sent_alike() -> None:
    request = parse_request("req_1", CHAT, b'{"model":"a","model":"b",' + MESSAGES + b"}")
    assert request.model == "b"
    assert request.body_for("up").count(b'"model"') == 1


def test_one_request_can_be_written_for_several_backends() -> None:
    request = parse_request("req_1", CHAT, b'{"model":"m",' + MESSAGES + b"}")
    assert [json.loads(request.body_for(name))["model"] for name in ("a", "b")] == ["a", "b"]


class TestWhatIsNotOursSurvives:
    TEXT = st.text(st.characters(exclude_categories=["Cs"]))
    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc\n"), inner, max_size=4),
        max_leaves=10,
    )
    SPACE = st.text(" \t\r\n", max_size=3)

    @given(value=JSON, before=SPACE, after=SPACE, ascii_only=st.booleans(), spread=st.booleans())
    def test_values_byte_for_byte(self, value: Any, before: str, after: str, ascii_only: bool, spread: bool) -> None:
        raw = json.dumps(value, ensure_ascii=ascii_only, indent=2 if spread else None).encode()
        body = b'{"model":"m",' + MESSAGES + b',"x_new":' + before.encode() + raw + after.encode() + b"}"
        sent = parse_request("req_1", CHAT, body).body_for("up")
        assert bytes(msgspec.json.decode(sent, type=dict[str, msgspec.Raw])["x_new"]) == raw

    @given(names=st.lists(TEXT, unique=True, max_size=8))
    def test_names_and_their_order(self, names: list[str]) -> None:
        ours = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"}
        names = [name for name in names if name not in ours | {"temperature", "top_p", "meritorder"}]
        fields = {"model": "m", "messages": [{"role": "u"}], **dict.fromkeys(names, 1)}
        sent = parse_request("req_1", CHAT, json.dumps(fields).encode()).body_for("up")
        assert list(json.loads(sent)) == list(fields)

    @given(body=st.binary(max_size=200))
    def test_no_body_whatever_does_more_than_be_refused(self, body: bytes) -> None:
        for endpoint in Endpoint:
            with pytest.raises(InvalidRequest):
                parse_request("req_1", endpoint, body)

    def test_numbers_keep_their_digits(self) -> None:
        exact = b'"x":[1.50,1e3,12345678901234567890123,0.1000000000000000055]'
        sent = parse_request("req_1", CHAT, b'{"model":"m",' + MESSAGES + b"," + exact + b"}").body_for("up")
        assert exact in sent

    def test_options_of_the_stream_survive_beside_the_one_that_is_ours(self) -> None:
        body = b'{"model":"m","stream":true,"stream_options":{"x":1.50,"include_usage":false},' + MESSAGES + b"}"
        sent = parse_request("req_1", CHAT, body).body_for("up")
        assert b'"stream_options":{"x":1.50,"include_usage":true}' in sent
