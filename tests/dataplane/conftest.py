"""A real ingress process between a test and scripted upstreams.

    test ──HTTP──► ingress (granian, a process of its own) ──► hosted proxy ──► ScriptedUpstream

The providers `first` and `second` stand behind the route `assistant`, in that order. `raw` is a bare TCP server
that answers with the bytes it is told to, for what no decent upstream would do. All tests of a session share one
ingress; `Ingress.run` starts another where a test stops it or reconfigures it.
"""

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import uvicorn
from openai import AsyncOpenAI
from sqlalchemy import Engine

from meritorder.core.status import ApplicationStatus, Phase
from meritorder.core.usage import UsageRecord
from meritorder.deployments.credentials import Credential
from meritorder.deployments.hosted import HostedProxy, Upstream
from meritorder.ledger.database import open_database
from meritorder.ledger.keys import KeyStore, load_secret
from meritorder.ledger.usage import find
from meritorder.manifests.status_file import write_statuses
from meritorder.testing.upstream import ScriptedUpstream

PROVIDER_KEY = "sk-the-providers-own-key"
START_SECONDS = 30.0

MANIFESTS = """
apiVersion: meritorder.dev/v1alpha1
kind: Provider
metadata: {name: first}
spec:
  type: simulated
  models:
    - {name: chat, upstreamName: sim-first, price: {input: 1, output: 2}}
    - {name: embedding, upstreamName: sim-first, price: {input: 1, output: 0}, capabilities: {endpoints: [embeddings]}}
    - {name: patient-one, upstreamName: sim-first, price: {input: 1, output: 2}}
    - {name: patient-two, upstreamName: sim-first, price: {input: 10, output: 20}}
---
apiVersion: meritorder.dev/v1alpha1
kind: Provider
metadata: {name: second}
spec:
  type: simulated
  models: [{name: chat, upstreamName: sim-second, price: {input: 10, output: 20}}]
---
apiVersion: meritorder.dev/v1alpha1
kind: Provider
metadata: {name: small} # the same place as `first`, and full with two requests
spec:
  type: simulated
  limits: {concurrency: 2}
  models: [{name: chat, upstreamName: sim-first, price: {input: 1, output: 2}}]
---
apiVersion: meritorder.dev/v1alpha1
kind: Provider
metadata: {name: raw}
spec:
  type: simulated
  models: [{name: chat, upstreamName: sim-raw, price: {input: 1, output: 2}}]
---
apiVersion: meritorder.dev/v1alpha1
kind: Model
metadata: {name: broken}
spec: {source: hf://org/broken}
---
apiVersion: meritorder.dev/v1alpha1
kind: Route
metadata: {name: assistant}
spec: {candidates: [{provider: first/chat}, {provider: second/chat}]}
---
apiVersion: meritorder.dev/v1alpha1
kind: Route
metadata: {name: spilling}
spec: {candidates: [{provider: small/chat}, {provider: second/chat}]}
---
apiVersion: meritorder.dev/v1alpha1
kind: Route
metadata: {name: raw-first}
spec: {candidates: [{provider: raw/chat}, {provider: second/chat}]}
---
apiVersion: meritorder.dev/v1alpha1
kind: Route
metadata: {name: once} # what fails stays failed
spec: {candidates: [{provider: first/chat}, {provider: second/chat}], retries: 0}
---
apiVersion: meritorder.dev/v1alpha1
kind: Route
metadata: {name: raw-once}
spec: {candidates: [{provider: raw/chat}], retries: 0}
---
apiVersion: meritorder.dev/v1alpha1
kind: Route
metadata: {name: patient}
spec: {candidates: [{provider: first/patient-one}, {provider: first/patient-two}]}
---
apiVersion: meritorder.dev/v1alpha1
kind: Team
metadata: {name: demo}
---
apiVersion: meritorder.dev/v1alpha1
kind: Team
metadata: {name: narrow}
spec: {routes: [assistant]}
"""

BACKENDS = ("first/chat", "second/chat", "small/chat", "raw/chat")
ANSWERS_BEFORE_A_TEST = 2
"""One failure per test must not become half of all results, which opens a circuit."""

BROKEN = ApplicationStatus("model-broken", Phase.FAILED, None, "the weights are not at hf://org/broken")


async def eventually(condition: Callable[[], Awaitable[Any]], seconds: float = 5.0) -> Any:
    """The first true value of `condition`, asked again and again."""
    async with asyncio.timeout(seconds):
        while not (value := await condition()):  # noqa: ASYNC110, another process sets no event here
            await asyncio.sleep(0.01)
        return value


@dataclass
class Ingress:
    """One ingress process, with a state directory of its own."""

    folder: Path
    manifests: str = MANIFESTS
    arguments: tuple[str, ...] = ()
    answers_with: int = 200
    port: int = 0
    keys: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @contextlib.asynccontextmanager
    async def run(self, endpoints: Mapping[str, str]) -> AsyncIterator["Ingress"]:
        """Start it with the applications at `endpoints` ready, and stop it at the end."""
        self.say(endpoints)
        self.start()
        try:
            await eventually(self._answers, START_SECONDS)
            yield self
        finally:
            await self.stop()

    def start(self) -> None:
        """Start it, and do not wait until it answers."""
        self.manifest_file.parent.mkdir(exist_ok=True)
        self.manifest_file.write_text(self.manifests)
        self.keys |= {team: self.new_key(team) for team in ("demo", "narrow")}
        self.restart()

    def restart(self) -> None:
        """Start it with the state directory as it is."""
        self.port = free_port()
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ask_to_stop(self) -> None:
        assert self.process is not None
        self.process.terminate()

    async def ended(self, seconds: float = 5.0) -> int:
        """The exit status."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, seconds)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    async def stop(self) -> int:
        """Ask it to end, and wait until it has."""
        self.ask_to_stop()
        try:
            return await self.ended(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def say(self, endpoints: Mapping[str, str]) -> None:
        """Write the status file: what is ready, and where."""
        self.folder.mkdir(exist_ok=True)
        ready = [ApplicationStatus(name, Phase.READY, url, "", 1, 1) for name, url in endpoints.items()]
        write_statuses(self.folder / "status.json", [*ready, BROKEN])

    def new_key(self, team: str) -> str:
        with self.database() as engine:
            return KeyStore(engine, load_secret(self.folder)).create(team)[1]

    def session(self, key: str | None = None) -> aiohttp.ClientSession:
        """A client with a key of the team `demo`, or with `key`."""
        authorization = {"authorization": f"Bearer {self.keys['demo'] if key is None else key}"}
        return aiohttp.ClientSession(self.url, headers=authorization if key != "" else {})

    def openai(self, key: str | None = None) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key or self.keys["demo"], max_retries=0)

    async def record(self, request_id: str) -> UsageRecord:
        """The usage record of a request, which has exactly one."""

        async def written() -> list[UsageRecord]:
            return await asyncio.to_thread(self.records, [request_id])

        records: list[UsageRecord] = await eventually(written)
        [record] = records
        return record

    def records(self, request_ids: Iterable[str]) -> list[UsageRecord]:
        with self.database() as engine:
            return find(engine, request_ids)

    @contextlib.contextmanager
    def database(self) -> Iterator[Engine]:
        engine = open_database(self.folder)
        try:
            yield engine
        finally:
            engine.dispose()

    def worker(self) -> int:
        """The process id of the worker that granian has forked."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def manifest_file(self) -> Path:
        return self.folder / "manifests" / "all.yaml"

    @property
    def log_file(self) -> Path:
        return self.folder / "ingress.log"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def _command(self) -> list[str]:
        folder = self.folder
        return [
            *(sys.executable, "-m", "meritorder.ingress", "--port", str(self.port)),
            *("--manifests", str(self.manifest_file.parent), "--state-dir", str(folder)),
            *("--status-file", str(folder / "status.json"), *self.arguments),
        ]

    async def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the ingress has ended:\n{self.log}"
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{self.url}/readyz") as response:
                return response.status == self.answers_with
        except aiohttp.ClientConnectionError:
            return False


@dataclass
class RawBackend:
    """A TCP server that answers each request with `replies`, the last of them again and again.

    A reply is a sequence of parts: bytes to send, or `WAIT` for `go`, `HOLD` until the client leaves, or `CLOSE`.
    `blocked` says that nobody takes what it sends.
    """

    replies: list[tuple[bytes, ...]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    sent: int = 0
    blocked: bool = False
    url: str = ""

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator["RawBackend"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    def reset(self, *replies: bytes | tuple[bytes, ...]) -> None:
        self.replies = [reply if isinstance(reply, tuple) else (reply,) for reply in replies]
        self.bodies.clear()
        self.connections = self.sent = 0
        self.blocked = False
        self.go.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.bodies.append(await _body(reader))
                for part in self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]:
                    if part is CLOSE:
                        return
                    if part is HOLD:
                        await reader.read()
                        return
                    if part is WAIT:
                        await self.go.wait()
                        continue
                    writer.write(part)
                    self.blocked = True
                    await writer.drain()
                    self.blocked = False
                    self.sent += len(part)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


WAIT = b"<wait for go>"
HOLD = b"<hold until the client leaves>"
CLOSE = b"<close>"


async def _body(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    assert length is not None
    return await reader.readexactly(int(length[1]))


@dataclass(frozen=True)
class Upstreams:
    """Everything behind the ingress, and where each application answers."""

    first: ScriptedUpstream
    second: ScriptedUpstream
    raw: RawBackend
    endpoints: Mapping[str, str]

    def reset(self) -> None:
        for upstream in (self.first, self.second):
            upstream.reset_script()
            upstream.clear_requests()
        self.raw.reset()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def everything(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Upstreams]:
    key_file = tmp_path_factory.mktemp("secret") / "key"
    key_file.write_text(PROVIDER_KEY)
    async with contextlib.AsyncExitStack() as stack:
        upstreams, endpoints = {}, {}
        for name in ("first", "second"):
            upstream = ScriptedUpstream(models=[f"sim-{name}"], api_key=PROVIDER_KEY)
            upstreams[name] = await stack.enter_async_context(upstream)
            proxy = HostedProxy(Upstream(name, upstream.v1_url, Credential(file=key_file), 1000))
            endpoints[f"provider-{name}"] = stack.enter_context(_served(proxy))
        endpoints["provider-small"] = endpoints["provider-first"]
        raw = await stack.enter_async_context(RawBackend().run())
        endpoints["provider-raw"] = raw.url
        yield Upstreams(**upstreams, raw=raw, endpoints=endpoints)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_ingress(everything: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ingress]:
    async with Ingress(tmp_path_factory.mktemp("ingress")).run(everything.endpoints) as ingress:
        yield ingress


@pytest_asyncio.fixture(loop_scope="session")
async def upstreams(everything: Upstreams) -> AsyncIterator[Upstreams]:
    """The upstreams, with nothing special in their scripts and nothing in their logs."""
    everything.reset()
    yield everything
    everything.reset()


@pytest_asyncio.fixture(loop_scope="session")
async def ingress(shared_ingress: Ingress, upstreams: Upstreams) -> AsyncIterator[Ingress]:
    """The shared ingress, which remembers no failure of an earlier test.

    Every backend answers: that closes its circuit, and ends the time for which it asked to be left alone. A test whose
    backend asks for seconds needs backends of its own, as `patient-one` and `patient-two` are.
    """
    upstreams.raw.reset(whole(b'{"choices":[]}'))
    async with shared_ingress.session() as http:
        for model in BACKENDS:
            for _ in range(ANSWERS_BEFORE_A_TEST):
                await eventually(partial(_answers, http, model))
    upstreams.reset()
    yield shared_ingress


@pytest_asyncio.fixture(loop_scope="session")
async def http(ingress: Ingress) -> AsyncIterator[aiohttp.ClientSession]:
    async with ingress.session() as session:
        yield session


@pytest_asyncio.fixture(loop_scope="session")
async def openai(ingress: Ingress) -> AsyncIterator[AsyncOpenAI]:
    async with ingress.openai() as client:
        yield client


async def _answers(http: aiohttp.ClientSession, model: str) -> bool:
    async with http.post("/v1/chat/completions", json=chat(model)) as response:
        await response.read()
        return response.status == 200


def chat(model: str = "assistant", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}


def whole(body: bytes, status: str = "200 OK", *headers: bytes) -> bytes:
    """A response with its length."""
    lines = [f"HTTP/1.1 {status}".encode(), b"content-type: application/json", *headers]
    return b"\r\n".join([*lines, f"content-length: {len(body)}".encode(), b"", body])


def streamed(*parts: bytes, end: bool = True) -> tuple[bytes, ...]:
    """A response in chunks, or other parts; without `end` its last chunk does not come."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    special = (WAIT, HOLD, CLOSE)
    chunks = [part if part in special else b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    return (head, *chunks, *([b"0\r\n\r\n"] if end else []))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _served(app: HostedProxy) -> Iterator[str]:
    """`app` on a port of its own, in a thread with a loop of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
