"""What a product team does: the OpenAI SDK, another base URL, a team's key."""

from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e

QUESTION = [{"role": "user", "content": "What is a merit order?"}]


def test_a_chat_is_answered_by_the_self_run_model(platform: Any) -> None:
    answer = platform.client().chat.completions.create(model="faq", messages=QUESTION, temperature=0)
    assert "cheapest" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 5


def test_the_headers_say_which_backend_answered(platform: Any) -> None:
    raw = platform.client().chat.completions.with_raw_response.create(model="assistant", messages=QUESTION)
    assert raw.headers["x-meritorder-backend"] == "faq"
    assert raw.headers["x-meritorder-attempts"] == "1"
    assert "x-simulated" not in raw.headers


def test_a_stream_arrives_in_pieces_and_ends_with_usage(platform: Any) -> None:
    stream = platform.client().chat.completions.create(
        model="faq", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "cheapest" in text
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 5
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 5


def test_a_stream_has_no_usage_for_a_client_that_does_not_ask(platform: Any) -> None:
    stream = platform.client().chat.completions.create(model="faq", messages=QUESTION, stream=True)
    assert all(chunk.choices and not chunk.usage for chunk in stream)


def test_a_completion_goes_on_with_the_prompt(platform: Any) -> None:
    answer = platform.client().completions.create(model="faq", prompt="A merit order is", max_tokens=12, temperature=0)
    assert answer.choices[0].text.strip()
    assert answer.usage.completion_tokens <= 12


def test_fields_of_the_engine_pass_through_both_ways(platform: Any) -> None:
    answer = platform.client().chat.completions.create(
        model="faq", messages=QUESTION, max_tokens=4, extra_body={"return_token_ids": True}
    )
    assert len(answer.choices[0].token_ids) == answer.usage.completion_tokens


def test_embeddings_come_from_the_hosted_side(platform: Any) -> None:
    answer = platform.client().embeddings.create(model="hosted/embedding", input=["one", "two"])
    assert [item.index for item in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) == len(answer.data[1].embedding) > 1
    assert answer.data[0].embedding != answer.data[1].embedding


def test_the_list_of_models_has_routes_and_backends(platform: Any) -> None:
    names = {model.id for model in platform.client().models.list()}
    assert {"assistant", "faq", "hosted/chat", "hosted/embedding", "scripted/talker"} <= names


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": "asistant"}, openai.NotFoundError, "'assistant'"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"model": "hosted/embedding"}, openai.BadRequestError, "/v1/embeddings"),
        ({"model": "keyless/talker"}, openai.InternalServerError, "'keyless/talker' has failed"),
        ({"max_tokens": 1_000_000}, openai.BadRequestError, "2048"),  # vLLM's own words, passed on
    ],
)
def test_errors_are_the_sdks_own(
    platform: Any, change: dict[str, Any], error: type[openai.APIStatusError], says: str
) -> None:
    arguments = {"model": "faq", "messages": QUESTION, **change}
    with pytest.raises(error) as caught:
        platform.client().chat.completions.create(**arguments)
    assert says in caught.value.message


@pytest.mark.parametrize("key", ["mo-wrong", "sk-" + "x" * 40])
def test_a_wrong_key_is_an_authentication_error(platform: Any, key: str) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        platform.client(key).chat.completions.create(model="faq", messages=QUESTION)
    assert caught.value.code == "invalid_api_key"
    assert key not in str(caught.value)


def test_a_revoked_key_stops_working_within_a_second(platform: Any, until: Any) -> None:
    created = platform.command("key", "create", "--team", "demo", "--name", "short-lived")
    client = platform.client(created.stdout.strip())
    until(lambda: _accepted(client), 5, "the new key is accepted")
    platform.command("key", "revoke", created.stderr.split()[0])
    until(lambda: not _accepted(client), 5, "the revoked key is refused")


def test_a_key_for_a_team_that_does_not_exist_is_refused_at_once(platform: Any) -> None:
    created = platform.command("key", "create", "--team", "dmeo")
    assert created.returncode == 1
    assert "'dmeo'" in created.stderr
    assert "demo" in created.stderr


def _accepted(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True
