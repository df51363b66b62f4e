"""The whole platform, started once per session as a user starts it: `meritorder up -f examples/quickstart`.

Beside the quickstart's manifests it gets a provider with a key, whose upstream the tests script, and a model
whose weights are not there.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

ROOT = Path(__file__).parents[2]
PROVIDER_KEY = "planted-provider-key-7f3a9c"
READY_SECONDS = 180  # 45 on two idle cores

EXTRA_MANIFESTS = """\
apiVersion: meritorder.dev/v1alpha1
kind: Provider
metadata: {{name: scripted}}
spec:
  type: openai-compatible
  baseURL: {upstream}/v1
  credentials: {{env: SCRIPTED_PROVIDER_KEY}}
  models:
    - name: talker
      price: {{input: 1, output: 4}}
---
apiVersion: meritorder.dev/v1alpha1
kind: Provider
metadata: {{name: keyless}}
spec:
  type: openai-compatible
  baseURL: {upstream}/v1
  credentials: {{env: A_VARIABLE_THAT_IS_NOT_SET}}
  models:
    - name: talker
      price: {{input: 1, output: 4}}
---
apiVersion: meritorder.dev/v1alpha1
kind: Model
metadata: {{name: broken}}
spec:
  source: file:///nowhere/to/be/found
---
apiVersion: meritorder.dev/v1alpha1
kind: Route
metadata: {{name: fallback}}
spec:
  candidates: [{{model: broken}}, {{provider: scripted/talker}}]
"""


@dataclass(frozen=True)
class Upstream:
    """A scripted provider in a process of its own."""

    url: str

    def script(self, **behaviour: Any) -> None:
        self._call("PUT", "script", {"rules": [{"behaviour": behaviour}]})

    def requests(self) -> list[dict[str, Any]]:
        answer = self._call("GET", "requests")
        requests: list[dict[str, Any]] = answer["requests"] if isinstance(answer, dict) else answer
        return requests

    def _call(self, method: str, what: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/_simulated/{what}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read() or b"null")


@dataclass(frozen=True)
class Platform:
    """A running platform, and how to use it."""

    url: str
    key: str
    state_dir: Path
    manifests: Path
    log: Path
    environment: dict[str, str]

    def client(self, key: str | None = None) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(self.environment, *arguments)

    def readiness(self) -> dict[str, Any]:
        return readiness(self.url)

    def endpoint(self, application: str) -> str:
        """The base URL of an application, past the ingress."""
        statuses = json.loads((self.state_dir / "status.json").read_text())
        return next(str(status["endpoint"]) for status in statuses if status["application"] == application)

    def phase(self, application: str) -> dict[str, Any]:
        applications = self.readiness().get("applications", [])
        return next((each for each in applications if each["application"] == application), {"phase": None})


def run_command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "meritorder.cli", *arguments],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def readiness(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as error:
        with error:
            return dict(json.load(error))
    except OSError:
        return {}


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    process = subprocess.Popen(
        [sys.executable, "-m", "meritorder.testing.upstream", "--model", "talker"],
        env={**os.environ, "MERITORDER_UPSTREAM_KEY": PROVIDER_KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        yield Upstream(process.stdout.readline().split()[-1])
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def platform(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    manifests = folder / "manifests"
    manifests.mkdir()
    (manifests / "extra.yaml").write_text(EXTRA_MANIFESTS.format(upstream=upstream.url))
    state_dir, port, log = folder / "state", free_port(), folder / "up.log"
    environment = {
        **os.environ,
        "MERITORDER_STATE_DIR": str(state_dir),
        "SCRIPTED_PROVIDER_KEY": PROVIDER_KEY,
    }
    url, shared = f"http://127.0.0.1:{port}", _shared_memory()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "meritorder.cli", "up", "-f", str(ROOT / "examples/quickstart"),
             "-f", str(manifests), "--port", str(port)],
            env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: _settled(process, url, log), READY_SECONDS, f"the platform is up\n{log.read_text()}")
        key = run_command(environment, "key", "create", "--team", "demo").stdout.strip()
        running = Platform(url, key, state_dir, manifests, log, environment)
        wait_until(lambda: _accepted(running), 5, "a new key is accepted")
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert _shared_memory() - shared == set(), "shared memory is left behind"


def _shared_memory() -> set[Path]:
    """The shared memory of Python's processes on this machine."""
    return set(Path("/dev/shm").glob("psm_*"))


def _settled(process: "subprocess.Popen[bytes]", url: str, log: Path) -> bool:
    if process.poll() is not None:
        pytest.fail(f"`meritorder up` has ended with {process.returncode}:\n{log.read_text()}")
    phases = {each["application"]: each["phase"] for each in readiness(url).get("applications", [])}
    return phases.get("model-faq") == "Ready" and "Pending" not in phases.values() and "Starting" not in phases.values()


def _accepted(platform: Platform) -> bool:
    request = urllib.request.Request(f"{platform.url}/v1/models", headers={"authorization": f"Bearer {platform.key}"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False


@pytest.fixture
def until() -> Callable[[Callable[[], object], float, str], None]:
    return wait_until


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_command


@pytest.fixture(scope="session")
def provider_key() -> str:
    return PROVIDER_KEY
