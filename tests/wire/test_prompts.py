"""What a prompt is made of, as far as routing and billing look at it."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meritorder.core.catalog import Endpoint, Modality
from meritorder.core.pricing import ServiceTier
from meritorder.core.request import PREFIX_BLOCK_BYTES, InferenceRequest
from meritorder.wire.openai import parse_request
from meritorder.wire.prompts import prefix_hashes

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def request(endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS, **fields: Any) -> InferenceRequest:
    given = {Endpoint.CHAT_COMPLETIONS: {"messages": [{"role": "user", "content": "hi"}]}}
    return parse_request("r", endpoint, msgspec.json.encode({"model": "m", **given.get(endpoint, {}), **fields}))


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


@pytest.mark.parametrize(
    ("endpoint", "fields", "text_bytes"),
    [
        (Endpoint.CHAT_COMPLETIONS, said("four"), 4),
        (Endpoint.CHAT_COMPLETIONS, said("é"), 2),
        (Endpoint.CHAT_COMPLETIONS, said(None), 0),
        (Endpoint.CHAT_COMPLETIONS, said([{"type": "text", "text": "four"}, {"type": "text", "text": "more"}]), 8),
        (Endpoint.CHAT_COMPLETIONS, said([{"type": "image_url", "image_url": {"url": "data:" + "A" * 999}}]), 0),
        (Endpoint.CHAT_COMPLETIONS, said("", tool_calls=[{"id": "1"}]), len('[{"id":"1"}]')),
        (Endpoint.CHAT_COMPLETIONS, said("hi", function_call={"name": "f"}), 2 + len('{"name":"f"}')),
        (Endpoint.CHAT_COMPLETIONS, said("hi", reasoning_content="hmm"), 2 + len('"hmm"')),
        (Endpoint.CHAT_COMPLETIONS, said("hi", reasoning="hmm"), 2 + len('"hmm"')),
        (Endpoint.CHAT_COMPLETIONS, said("hi", refusal="no", name="me"), 2 + len('"no""me"')),
        (Endpoint.CHAT_COMPLETIONS, said("hi", refusal=None, name=None, tool_calls=None, function_call=None), 2),
        (
            Endpoint.CHAT_COMPLETIONS,
            said([{"type": "refusal", "refusal": "no"}]),
            len('{"type":"refusal","refusal":"no"}'),
        ),
        (Endpoint.CHAT_COMPLETIONS, said([{"type": "text", "text": ["odd"]}]), len('{"type":"text","text":["odd"]}')),
        (Endpoint.CHAT_COMPLETIONS, said([{"refusal": "no"}, {"text": "four"}]), len('{"refusal":"no"}four')),
        (Endpoint.CHAT_COMPLETIONS, said([{"type": ["odd"]}, 12, "four"]), len('{"type":["odd"]}12four')),
        (Endpoint.CHAT_COMPLETIONS, said([{"type": "file", "file": {"file_data": "A" * 999}, "text": "four"}]), 4),
        (Endpoint.CHAT_COMPLETIONS, said("hi") | {"prediction": {"content": "x"}}, 2 + len('{"content":"x"}')),
        (Endpoint.CHAT_COMPLETIONS, said("hi") | {"tools": [TOOL]}, 2 + len(msgspec.json.encode([TOOL]))),
        (Endpoint.COMPLETIONS, {"prompt": "four"}, 4),
        (Endpoint.COMPLETIONS, {"prompt": ["four", "more"]}, 8),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2, 3]}, 12),
        (Endpoint.COMPLETIONS, {"prompt": [[1, 2], [3]]}, 12),
        (Endpoint.EMBEDDINGS, {"input": ["four", "more"]}, 8),
    ],
)
def test_the_size_of_its_text(endpoint: Endpoint, fields: dict[str, Any], text_bytes: int) -> None:
    assert request(endpoint, **fields).text_bytes == text_bytes


@pytest.mark.parametrize(
    ("endpoint", "fields", "limit"),
    [
        (Endpoint.CHAT_COMPLETIONS, {}, None),
        (Endpoint.CHAT_COMPLETIONS, {"max_tokens": 7}, 7),
        (Endpoint.CHAT_COMPLETIONS, {"max_completion_tokens": 9}, 9),
        (Endpoint.CHAT_COMPLETIONS, {"max_tokens": 7, "max_completion_tokens": 9}, 9),
        (Endpoint.CHAT_COMPLETIONS, {"max_tokens": 9, "max_completion_tokens": 7}, 9),
        (Endpoint.CHAT_COMPLETIONS, {"max_tokens": 7, "n": 3}, 21),
        (Endpoint.COMPLETIONS, {"prompt": "a"}, 16),
        (Endpoint.COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 5, "n": 2}, 20),
        (Endpoint.COMPLETIONS, {"prompt": "a", "max_tokens": 5, "best_of": 4}, 20),
        (Endpoint.EMBEDDINGS, {"input": "a"}, 0),
    ],
)
def test_how_long_its_answer_may_be(endpoint: Endpoint, fields: dict[str, Any], limit: int | None) -> None:
    assert request(endpoint, **fields).max_output_tokens == limit


@pytest.mark.parametrize(
    ("part", "modality"),
    [("image_url", Modality.IMAGE), ("input_audio", Modality.AUDIO), ("file", Modality.FILE)],
)
def test_media_are_noticed(part: str, modality: Modality) -> None:
    assert request(**said([{"type": part, part: {}}])).modalities == {modality}


def test_media_are_counted_in_all_messages() -> None:
    image: dict[str, Any] = {"type": "image_url", "image_url": {}}
    sound: dict[str, Any] = {"type": "input_audio", "input_audio": {}}
    text = {"type": "text", "text": "and these"}
    messages = [{"role": "user", "content": parts} for parts in ([image, text, image], "text", [sound])]
    assert (request(messages=messages).media_items, request().media_items) == (3, 0)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
def test_whatever_a_part_is_it_has_a_size(part: Any) -> None:
    assert request(**said([{"type": "new", "new": part}])).text_bytes > len('{"type":"new","new":}')


@pytest.mark.parametrize(
    ("fields", "tools", "structured"),
    [
        ({}, False, False),
        ({"tools": []}, False, False),
        ({"tools": None, "response_format": None}, False, False),
        ({"tools": [TOOL]}, True, False),
        ({"functions": [{"name": "f"}]}, True, False),
        ({"response_format": {"type": "text"}}, False, False),
        ({"response_format": {"type": "json_object"}}, False, True),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, False, True),
    ],
)
def test_what_the_model_must_be_able_to_do(fields: dict[str, Any], tools: bool, structured: bool) -> None:
    made = request(**fields)
    assert (made.tools, made.structured_output) == (tools, structured)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("flex", ServiceTier.FLEX),
        ("priority", ServiceTier.PRIORITY),
        ("auto", ServiceTier.DEFAULT),
        (7, ServiceTier.DEFAULT),
    ],
)
def test_the_service_tier(given: Any, expected: ServiceTier) -> None:
    assert request(service_tier=given).service_tier is expected


class TestPrefix:
    def test_short_prompts_have_none(self) -> None:
        assert request().prefix == ()

    def test_prompts_that_begin_alike_share_it(self) -> None:
        system = {"role": "system", "content": "s" * 5000}
        one, two = (
            request(messages=[system, {"role": "user", "content": question}]).prefix
            for question in ("a" * 3000, "b" * 3000)
        )
        shared = sum(a == b for a, b in zip(one, two, strict=True))
        assert 0 < shared < len(one)
        assert one[:shared] == two[:shared]

    def test_all_of_what_comes_before_counts_and_not_its_whole_blocks_alone(self) -> None:
        messages = b"m" * 3000
        prefixes = [prefix_hashes(tools, messages) for tools in (b"", b"a", b"b", b"ab")]
        assert [len(prefix) for prefix in prefixes] == [2] * 4, "an incomplete block has no hash of its own"
        assert len({prefix[0] for prefix in prefixes}) == 4

    def test_of_long_prompts_no_more_is_looked_at_than_decides(self) -> None:
        begin = 64 * PREFIX_BLOCK_BYTES
        one, two = (prefix_hashes(b"x" * begin + end, b"more") for end in (b"a" * 5000, b"b" * 9000))
        assert (len(one), one) == (64, two)

    @given(st.binary(max_size=5000), st.integers(0, 5000))
    def test_a_change_changes_all_that_follows(self, part: bytes, place: int) -> None:
        changed = bytearray(part)
        if place < len(part):
            changed[place] ^= 1
        before, after = prefix_hashes(part), prefix_hashes(bytes(changed))
        same = place // PREFIX_BLOCK_BYTES if place < len(part) else len(before)
        assert before[:same] == after[:same]
        assert all(one != two for one, two in zip(before[same:], after[same:], strict=True))
