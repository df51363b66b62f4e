"""`meritorder explain`, as a person meets it, with a real ingress and nothing behind it: nothing is sent there."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from openapi_schema_validator import OAS31Validator

from meritorder.cli.local_key import ensure_local_key
from meritorder.cli.main import main
from meritorder.cli.running import LOCAL_KEY_FILE, STATUS_FILE, Running, announce, claimed
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.ingress.openapi import document
from meritorder.manifests.status_file import write_statuses

START_SECONDS = 30.0

MANIFESTS = """
apiVersion: meritorder.dev/v1alpha1
kind: Provider
metadata: {name: hosted}
spec:
  type: simulated
  models:
    - {name: dear, price: {input: 10, output: 20}}
    - {name: cheap, price: {input: 0.25, output: 2}}
    - {name: text, price: {input: 0.1, output: 1}, capabilities: {tools: false}}
    - {name: embedding, price: {input: 0.02, output: 0}, capabilities: {endpoints: [embeddings]}}
---
apiVersion: meritorder.dev/v1alpha1
kind: Model
metadata: {name: faq}
spec: {source: hf://org/faq}
---
apiVersion: meritorder.dev/v1alpha1
kind: Route
metadata: {name: assistant}
spec:
  candidates:
    - {provider: hosted/dear, quality: 1}
    - {model: faq, quality: 0.8}
    - {provider: hosted/cheap, quality: 0.9}
    - {provider: hosted/text, quality: 0.5}
  objective: {qualityWorth: 0.001}
---
apiVersion: meritorder.dev/v1alpha1
kind: Team
metadata: {name: demo}
spec:
  budgets: [{period: monthly, amount: 20}]
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state directory of a platform that is up, as far as the commands and the ingress can see."""
    state_dir = tmp_path_factory.mktemp("platform") / "state"
    manifests = state_dir.parent / "manifests"
    manifests.mkdir()
    (manifests / "all.yaml").write_text(MANIFESTS)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with claimed(state_dir):
        hosted = ApplicationStatus("provider-hosted", Phase.READY, "http://127.0.0.1:9", "", 1, 1)
        write_statuses(state_dir / STATUS_FILE, [hosted, ApplicationStatus("model-faq", Phase.STARTING)])
        ensure_local_key(state_dir, "demo")
        url = f"http://127.0.0.1:{port}"
        announce(state_dir, Running(os.getpid(), url, (str(manifests),), ("demo",)))
        arguments = ["--port", str(port), "-f", str(manifests), "--state-dir", str(state_dir)]
        arguments += ["--status-file", str(state_dir / STATUS_FILE)]
        with (
            (state_dir / "ingress.log").open("wb") as log,
            subprocess.Popen(
                [sys.executable, "-m", "meritorder.ingress", *arguments], stdout=log, stderr=log
            ) as ingress,
        ):
            try:
                _wait_until_ready(f"{url}/readyz", ingress)
                yield state_dir
            finally:
                ingress.terminate()


def _wait_until_ready(url: str, ingress: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert ingress.poll() is None, "the ingress has ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.05)
    raise TimeoutError("the ingress is not ready")


@pytest.fixture(autouse=True)
def environment(platform: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERITORDER_STATE_DIR", str(platform))
    monkeypatch.delenv("MERITORDER_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def explain(*arguments: str, body: Any = None) -> Result:
    text = body if isinstance(body, str) or body is None else json.dumps(body)
    return CliRunner().invoke(main, ["explain", *arguments], input=text)


def cells(line: str) -> list[str]:
    return line.split()


class TestTable:
    def test_the_order_with_the_parts_of_each_score(self) -> None:
        result = explain("-m", "assistant", "--max-tokens", "100", "hello")
        assert result.exit_code == 0, result.output
        lines = result.output.splitlines()
        first, second, third = (line for line in lines if line.lstrip()[:1] in ("1", "2", "3") and "hosted/" in line)
        # 10 tokens of prompt are expected ("hello" and what a template adds), and 100 of the answer.
        assert cells(first)[:3] == ["1", "hosted/cheap", "hosted"]
        quality, cost, lateness, congestion = (float(cell) for cell in cells(first)[4:8])
        assert (quality, lateness, congestion) == (900.0, 0.0, 0.0)
        assert cost == pytest.approx(200, abs=5)
        assert float(cells(first)[3]) == pytest.approx(quality - cost)
        assert cells(second)[:3] == ["2", "hosted/text", "hosted"]
        assert cells(third)[:3] == ["3", "hosted/dear", "hosted"]
        assert cells(third)[3].startswith("-1,")  # a utility below zero

    def test_how_much_it_can_cost_and_what_is_not_known_yet(self) -> None:
        [line] = [line for line in explain("-m", "hosted/cheap", "--max-tokens", "100", "hello").output.splitlines()
                  if line.lstrip().startswith("1 ")]  # fmt: skip
        bound, ttft, cached = cells(line)[-3:]
        assert float(bound) > 200
        assert (ttft, cached) == ("unknown", "0")

    def test_the_rejected_with_their_reasons(self) -> None:
        output = explain("-m", "assistant", "hello").output
        [line] = [line for line in output.splitlines() if line.strip().startswith("faq")]
        assert cells(line) == ["faq", "not_ready", "is", "starting"]

    def test_the_decision_in_a_sentence_and_who_pays(self) -> None:
        lines = explain("-m", "assistant", "hello").output.splitlines()
        assert lines[0].startswith("assistant, /v1/chat/completions; about 2 tokens of prompt; team demo; 20")
        assert lines[-1] == "'hosted/cheap' is tried first, then 'hosted/text', 'hosted/dear' if it fails."

    def test_where_nothing_can_be_tried_only_the_reasons_are_there(self) -> None:
        result = explain("-m", "faq", "hello")
        assert result.exit_code == 0
        assert "utility" not in result.output
        assert "is starting" in result.output
        assert result.output.splitlines()[-1].startswith("No candidate can be tried")


class TestJson:
    @pytest.mark.parametrize("model", ["assistant", "faq", "hosted/cheap"])
    def test_is_what_the_ingress_answers_and_as_it_is_described(self, model: str) -> None:
        explained = json.loads(explain("-m", model, "hello", "--json").output)
        described = document()
        plan = described["components"]["schemas"]["Plan"]
        OAS31Validator({**plan, "components": described["components"]}).validate(explained)
        assert explained["route"] == model


class TestRequest:
    def test_without_a_name_it_is_the_first_that_the_key_may_call(self) -> None:
        assert json.loads(explain("hello", "--json").output)["route"] == "assistant"

    def test_a_body_from_standard_input_may_need_more_than_a_prompt(self) -> None:
        tools = [{"type": "function", "function": {"name": "f"}}]
        body = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}], "tools": tools}
        explained = json.loads(explain("--body", "-", "--json", body=body).output)
        assert {"hosted/text", "faq"} == {one["backend"] for one in explained["rejected"]}

    def test_a_body_from_a_file_of_another_endpoint_and_with_overrides(self, tmp_path: Path) -> None:
        (tmp_path / "body.json").write_text('{"model": "x", "input": "hello", "meritorder": {"max_cost_usd": "0.01"}}')
        arguments = ("--body", str(tmp_path / "body.json"), "-m", "hosted/embedding", "--json")
        explained = json.loads(explain(*arguments).output)
        assert (explained["route"], explained["endpoint"]) == ("hosted/embedding", "embeddings")
        assert explained["attempts"][0]["backend"] == "hosted/embedding"

    @pytest.mark.parametrize(
        ("arguments", "body", "says"),
        [
            ([], None, "give either a PROMPT or a --body"),
            (["hello", "--body", "-"], "{}", "give either a PROMPT or a --body"),
            (["--body", "-"], "{oops", "is not JSON"),
            (["--body", "-"], "[1]", "no JSON object"),
            (["--body", "-"], '{"messages": 3}', "messages"),
            (["-m", "asistant", "hello"], None, "Did you mean 'assistant'?"),
            (["hello", "--url", "file:///etc/passwd"], None, "expected a URL"),
            (["hello", "--url", "http://[::1"], None, "expected a URL"),
            (["hello", "--url", "http://host:port"], None, "expected a URL"),
            (["hello", "--url", "http://127.0.0.1:9"], None, "set MERITORDER_API_KEY"),
        ],
    )
    def test_what_is_wrong_is_a_sentence(self, arguments: list[str], body: str | None, says: str) -> None:
        result = explain(*arguments, body=body)
        assert result.exit_code != 0
        assert says in result.output
        assert isinstance(result.exception, SystemExit)


class TestIngress:
    def test_another_one_by_its_url_with_the_key_of_the_environment(
        self, platform: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = json.loads((platform / "running.json").read_text())["url"]
        monkeypatch.setenv("MERITORDER_API_KEY", (platform / LOCAL_KEY_FILE).read_text().strip())
        monkeypatch.setenv("MERITORDER_STATE_DIR", str(tmp_path))  # where nothing runs
        for given in (url, f"{url}/", f"{url}/v1"):
            assert explain("hello", "--url", given).exit_code == 0

    def test_where_nothing_runs_it_says_how_to_start_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MERITORDER_STATE_DIR", str(tmp_path))
        result = explain("hello")
        assert result.exit_code == 1
        assert "meritorder up -f DIR" in result.output
