"""Keys and prompts are nowhere but where they must be."""

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e

PROMPT = "planted-prompt-41d8e0"


@pytest.fixture(scope="module")
def planted(platform: Any, upstream: Any, provider_key: str) -> list[bytes]:
    """Send the secrets through everything that could keep them, failures included; give them all."""
    messages = [{"role": "user", "content": PROMPT}]
    client = platform.client()
    client.chat.completions.create(model="faq", messages=messages, max_tokens=4)
    upstream.script()
    client.chat.completions.create(model="scripted/talker", messages=messages)
    for behaviour in ({"status": 500}, {"status": 401}, {"refuse_connection": True}):
        upstream.script(**behaviour)
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="scripted/talker", messages=messages)
        assert provider_key not in str(caught.value)
        assert PROMPT not in str(caught.value)
    assert any(request["key_accepted"] for request in upstream.requests()), "the provider has seen its key"
    return [provider_key.encode(), platform.key.encode(), PROMPT.encode()]


def test_no_file_of_the_platform_has_them(platform: Any, planted: list[bytes]) -> None:
    files = [file for file in platform.state_dir.rglob("*") if file.is_file() and not file.is_symlink()]
    assert any("ray" in str(file) for file in files), "Ray's session logs are among them"
    assert {f"{file}: {secret.decode()}" for file in files for secret in planted if secret in _content(file)} == set()
    assert not [secret for secret in planted if secret in platform.log.read_bytes()]


def test_no_command_line_has_them(planted: list[bytes]) -> None:
    shown = b"\n".join(_content(Path(f"/proc/{pid}/cmdline")) for pid in os.listdir("/proc") if pid.isdigit())
    assert not [secret for secret in planted if secret in shown]


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/healthz"])
def test_no_page_of_the_ingress_has_them(platform: Any, planted: list[bytes], path: str) -> None:
    with urllib.request.urlopen(f"{platform.url}{path}", timeout=5) as response:
        body = response.read()
    assert not [secret for secret in planted if secret in body]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # it has gone in the meantime
