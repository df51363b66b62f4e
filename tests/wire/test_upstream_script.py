"""Scripts: what is accepted, what is refused and with which words, and which rule a request meets."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from meritorder.testing.upstream import Behaviour, Script, ScriptError, load_script, parse_script, script
from meritorder.testing.upstream.clock import FakeClock
from meritorder.testing.upstream.playbook import Playbook


def rule(**behaviour: Any) -> dict[str, Any]:
    return {"rules": [{"behaviour": behaviour}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rulez": []}, "rulez: Extra inputs"),
        ([], "script: Input should be"),
        ({"rules": [{"endpoint": "chats"}]}, "rules.0.endpoint: Input should be 'chat'"),
        ({"rules": [{}, {"times": 0}]}, "rules.1.times: "),
        ({"rules": [{"endpoint": "models", "model": "m"}]}, "rules.0: model has no meaning"),
        (rule(ttft=1), "rules.0.behaviour.ttft: Extra inputs"),
        (rule(ttft_ms="1"), "rules.0.behaviour.ttft_ms: Input should be a valid number"),
        (rule(ttft_ms=-1), "rules.0.behaviour.ttft_ms: "),
        (rule(itl_ms=float("inf")), "rules.0.behaviour.itl_ms: "),
        (rule(jitter=1.5), "rules.0.behaviour.jitter: "),
        (rule(status=302), "rules.0.behaviour.status: must be 200, or 400 to 599"),
        (rule(headers={"retry-after": 1}), "rules.0.behaviour.headers.retry-after: "),
        (rule(headers={"x": "a\r\nb"}), "rules.0.behaviour.headers: 'x' is no valid header"),
        (rule(headers={"Content-Length": "1"}), "rules.0.behaviour.headers: Content-Length is set by"),
        (rule(extra_fields={"choices": []}), "rules.0.behaviour.extra_fields: choices is a field"),
        (rule(usage="none"), "rules.0.behaviour.usage: Input should be"),
        (rule(hang=True, status=500), "rules.0.behaviour: status and hang exclude each other"),
        (rule(text="a", tokens=1), "rules.0.behaviour: text and tokens exclude each other"),
        (rule(fail_mode="close"), "rules.0.behaviour: fail_mode needs fail_after_chunks"),
        (rule(error_code="x"), "rules.0.behaviour: error_code needs an error status"),
        (rule(ttft=1, itl=1), "rules.0.behaviour.ttft: Extra inputs are not permitted (and 1 more)"),
    ],
)
def test_wrong_script_is_refused_with_the_name_of_the_field(data: object, message: str) -> None:
    with pytest.raises(ScriptError) as caught:
        parse_script(data)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["script.yaml", "script.yml", "script.json"])
def test_script_is_loaded_from_yaml_and_json(tmp_path: Path, name: str) -> None:
    data = {
        "rules": [
            {"model": "gpt-*", "endpoint": "chat", "times": 2, "behaviour": {"status": 503}},
            {"behaviour": {"ttft_ms": 1.5, "usage": None, "extra_fields": {"a": [1, None]}}},
        ]
    }
    path = tmp_path / name
    path.write_text(json.dumps(data))
    assert load_script(path) == parse_script(data)


def test_script_in_the_documentation_is_one(tmp_path: Path) -> None:
    path = tmp_path / "script.yaml"
    path.write_text(textwrap.dedent((script.__doc__ or "").partition("\n\n")[2]))
    refused, broken = load_script(path).rules
    assert (refused.model, refused.times) == ("gpt-*", 2)
    assert refused.behaviour == Behaviour(status=429, headers={"retry-after": "1"})
    assert broken.behaviour.failure == "close"


def test_empty_file_is_the_empty_script(tmp_path: Path) -> None:
    path = tmp_path / "script.yaml"
    path.write_text("# nothing yet\n")
    assert load_script(path) == Script()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.yaml", b"rules: [", "while parsing"),
        ("s.json", b"{", "Expecting"),
        ("s.yaml", b"\xff\xfe\xff", "codec can't decode"),
        ("s.yaml", b"rules: [{behaviour: {hangs: true}}]", "rules.0.behaviour.hangs: Extra inputs"),
        ("s.yaml", None, "No such file"),
    ],
)
def test_file_that_is_no_script_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScriptError) as caught:
        load_script(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def met(playbook: Playbook, endpoint: Any, model: str | None) -> str | None:
    return playbook.meet(endpoint, model).behaviour.text


def texts(*rules: dict[str, Any]) -> Playbook:
    """Return a playbook whose rules answer with their own number."""
    numbered = [{**fields, "behaviour": {"text": str(i)}} for i, fields in enumerate(rules)]
    return Playbook(parse_script({"rules": numbered}), FakeClock())


@pytest.mark.parametrize(
    ("fields", "endpoint", "model", "matches"),
    [
        ({}, "chat", "gpt-sim", True),
        ({}, "embeddings", "gpt-sim", True),
        ({}, "models", None, False),
        ({"endpoint": "models"}, "models", None, True),
        ({"endpoint": "chat"}, "completions", "gpt-sim", False),
        ({"model": "gpt-sim"}, "chat", "gpt-sim", True),
        ({"model": "gpt-sim"}, "chat", "gpt-sim-2", False),
        ({"model": "gpt-*"}, "chat", "gpt-sim-2", True),
        ({"model": "gpt-*"}, "models", None, False),
    ],
)
def test_rule_matches_by_model_and_endpoint(
    fields: dict[str, Any], endpoint: str, model: str | None, matches: bool
) -> None:
    assert (met(texts(fields), endpoint, model) == "0") is matches


def test_first_rule_that_has_not_expired_applies() -> None:
    playbook = texts({"times": 2}, {"model": "b"}, {"times": 1})
    sequence = [met(playbook, "chat", model) for model in ("a", "b", "b", "a", "a")]
    assert sequence == ["0", "0", "1", "2", None]


def test_loading_or_resetting_a_script_counts_afresh() -> None:
    playbook = texts({"times": 1})
    assert [met(playbook, "chat", "a") for _ in range(2)] == ["0", None]
    playbook.load(Script.always(Behaviour(text="new")))
    assert met(playbook, "chat", "a") == "new"
    playbook.reset()
    assert [met(playbook, "chat", "a") for _ in range(2)] == ["0", None]
