"""The simulated upstream as a process: its command line, and scripting it over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from meritorder.testing.upstream import Behaviour, Script, ScriptedUpstream

COMMAND = [sys.executable, "-W", "error", "-m", "meritorder.testing.upstream"]
CHAT = {"model": "gpt-sim", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def up() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(Script.always(Behaviour(status=503))) as upstream:
        yield upstream


@pytest.fixture
async def http(up: ScriptedUpstream) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(up.base_url, headers={"Authorization": "Bearer any"}) as session:
        yield session


async def status(http: aiohttp.ClientSession) -> int:
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        return response.status


async def test_script_is_set_shown_and_reset_over_http(http: aiohttp.ClientSession) -> None:
    script = {"rules": [{"times": 1, "behaviour": {"status": 500}}]}
    assert await status(http) == 503
    async with http.put("/_simulated/script", json=script) as response:
        assert await response.json() == {"rules": 1}
        assert response.headers["x-simulated"] == "true"
    async with http.get("/_simulated/script") as response:
        assert await response.json() == script
    assert [await status(http) for _ in range(2)] == [500, 200]
    async with http.delete("/_simulated/script") as response:
        assert response.status == 204
    assert await status(http) == 503


@pytest.mark.parametrize(
    ("data", "param", "message"),
    [
        (b'{"rules": [{"behaviour": {"ttft": 1}}]}', "rules.0.behaviour.ttft", "Extra inputs"),
        (b"rules: []", None, "the body is not JSON"),
        (b"\xff", None, "the body is not JSON"),
    ],
)
async def test_bad_script_over_http_is_refused_and_changes_nothing(
    http: aiohttp.ClientSession, data: bytes, param: str | None, message: str
) -> None:
    async with http.put("/_simulated/script", data=data) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert message in error["message"]
    assert (error["param"], error["code"]) == (param, "invalid_script")
    assert await status(http) == 503


async def test_requests_are_listed_and_cleared_over_http(http: aiohttp.ClientSession) -> None:
    await status(http)
    async with http.get("/_simulated/requests") as response:
        listed = await response.json()
    [request] = listed["requests"]
    assert request["body"] == CHAT
    assert request["outcome"] == "failed"
    assert request["key_accepted"] is True
    assert 0 <= request["started_s"] <= request["ended_s"] <= listed["now_s"]
    async with http.delete("/_simulated/requests") as response:
        assert response.status == 204
    async with http.get("/_simulated/requests") as response:
        assert (await response.json())["requests"] == []


@contextmanager
def running(*options: str, **environment: str) -> Iterator[str]:
    """Run the command and give its first line; stop it as a supervisor would."""
    env = {**os.environ, **environment}
    with subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline()
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, "", "")


def get(url: str, key: str) -> object:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def test_command_serves_the_models_to_the_key_of_its_environment(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text("rules: [{endpoint: models, behaviour: {extra_fields: {from_script: true}}}]")
    options = ["--model", "a-sim", "--model", "b-sim", "--script", str(script)]
    with running(*options, MERITORDER_UPSTREAM_KEY="sk-env") as line:
        assert line.startswith("simulated upstream on http://127.0.0.1:")
        url = line.split()[-1]
        body = get(f"{url}/v1/models", "sk-env")
        assert isinstance(body, dict)
        assert [model["id"] for model in body["data"]] == ["a-sim", "b-sim"]
        assert body["from_script"] is True
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            get(f"{url}/v1/models", "sk-other")
        refused.value.close()


def fail(*options: str) -> str:
    """Run the command, which must fail, and return its one line of error."""
    result = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return line


def test_command_names_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert fail("--port", str(port)) == f"Error: port {port} on 127.0.0.1 is in use"


def test_command_says_that_an_address_cannot_be_had() -> None:
    assert "cannot listen on 192.0.2.1, port 0" in fail("--host", "192.0.2.1")


def test_command_names_the_wrong_field_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text("rules: [{behaviour: {status: '503'}}]")
    error = fail("--script", str(script))
    assert error == f"Error: {script}: rules.0.behaviour.status: Input should be a valid integer"
