"""The local cluster with real Ray, Serve and HAProxy, but without vLLM: about a minute in all."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from meritorder.core.status import ApplicationStatus, Phase
from meritorder.deployments.local.cluster import LocalCluster
from meritorder.manifests.kinds import Model, Provider
from meritorder.system.processes import descendants

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="session")]

KEY = "sk-secret-0123456789"


class Upstream:
    """A provider in a thread of its own; the path of a request says how it behaves."""

    def __init__(self) -> None:
        self.authorizations: list[str] = []
        self.asked = threading.Event()
        self.went_on = threading.Event()
        self.cancelled = threading.Event()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self.url = ""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.authorizations.append(request.headers.get("Authorization", ""))
        self.asked.set()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            if "silent" in request.path:
                await asyncio.sleep(60)
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
            if "endless" in request.path:
                await asyncio.sleep(60)
            await asyncio.to_thread(self.went_on.wait, 10)
            await response.write(b"data: [DONE]\n\n")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return response

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        app = web.Application()
        app.router.add_post("/{path:.*}", self._handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    def __enter__(self) -> "Upstream":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()


def manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "meritorder.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def provider(name: str, url: str, variable: str = "CLUSTER_TEST_KEY") -> Provider:
    models = [{"name": "m", "price": {"input": 1, "output": 2}}]
    spec = {"type": "openai-compatible", "baseURL": url, "credentials": {"env": variable}, "models": models}
    return Provider.model_validate(manifest("Provider", name, spec))


def settle(cluster: LocalCluster, seconds: float = 60) -> Mapping[str, ApplicationStatus]:
    deadline = time.monotonic() + seconds
    while any(status.phase not in (Phase.READY, Phase.FAILED) for status in cluster.statuses().values()):
        assert time.monotonic() < deadline, cluster.statuses()
        cluster.wait(1)
    return cluster.statuses()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CLUSTER_TEST_KEY", KEY)
        environment.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        cluster = LocalCluster(tmp_path_factory.mktemp("state"))
        with cluster:
            cluster.apply([], [provider("acme", upstream.url)])
            assert settle(cluster)["provider-acme"].phase is Phase.READY
            yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_pieces_come_through_haproxy_as_they_are_sent(
    cluster: LocalCluster, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    endpoint = cluster.statuses()["provider-acme"].endpoint
    async with client.post(f"{endpoint}/v1/chat/completions", json={}) as response:
        assert await response.content.readany() == b"data: 1\n\n"
        upstream.went_on.set()
        assert await response.content.read() == b"data: [DONE]\n\n"
    assert upstream.authorizations[-1] == f"Bearer {KEY}"


@pytest.mark.parametrize("path", ["endless", "silent"])
async def test_a_client_that_leaves_cancels_through_haproxy(
    cluster: LocalCluster, upstream: Upstream, client: aiohttp.ClientSession, path: str
) -> None:
    upstream.cancelled.clear()
    endpoint = cluster.statuses()["provider-acme"].endpoint
    upstream.asked.clear()
    request = asyncio.ensure_future(client.post(f"{endpoint}/v1/{path}", json={}))
    if path == "endless":
        (await request).close()
    else:
        await asyncio.to_thread(upstream.asked.wait, 3)
        request.cancel()
    assert await asyncio.to_thread(upstream.cancelled.wait, 3)


async def test_what_fails_says_why_and_leaves_the_others_alone(
    cluster: LocalCluster, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    endpoint = cluster.statuses()["provider-acme"].endpoint
    model = Model.model_validate(manifest("Model", "gone", {"source": "file:///no/such/folder"}))
    providers = [provider("acme", upstream.url), provider("keyless", upstream.url, "NO_SUCH_KEY")]
    await asyncio.to_thread(cluster.apply, [model], providers)
    statuses = await asyncio.to_thread(settle, cluster)
    assert statuses["model-gone"].phase is statuses["provider-keyless"].phase is Phase.FAILED
    assert statuses["model-gone"].message == "source /no/such/folder does not exist or is not a folder"
    assert "the environment variable NO_SUCH_KEY" in statuses["provider-keyless"].message
    async with client.post(f"{endpoint}/v1/chat/completions", json={}) as response:
        assert response.status == 200

    await asyncio.to_thread(cluster.apply, [], [provider("acme", upstream.url)])
    assert list(cluster.statuses()) == ["provider-acme"]


async def test_everything_listens_on_loopback_only(cluster: LocalCluster) -> None:
    assert _listeners(os.getpid()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


async def test_the_key_is_in_no_file(cluster: LocalCluster) -> None:
    files = [file for file in cluster.state_dir.rglob("*") if file.is_file()]
    assert files
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []


async def test_it_stops_at_once_and_can_be_started_again(tmp_path: Path, upstream: Upstream) -> None:
    cluster = LocalCluster(tmp_path)
    cluster.log_file.parent.mkdir()
    for _ in range(2):
        cluster.log_file.write_text("of an earlier run\n")
        cluster.start()
        assert "earlier" not in cluster.log_file.read_text()
        supervisor = _supervisor(tmp_path)
        started = {supervisor} | descendants(supervisor)
        assert len(started) > 5
        began = time.monotonic()
        cluster.stop()
        assert time.monotonic() - began < 5
        assert not any(_runs(pid) for pid in started)


async def test_nothing_is_left_when_the_supervisor_dies(tmp_path: Path, upstream: Upstream) -> None:
    with LocalCluster(tmp_path) as cluster:
        cluster.apply([], [provider("acme", upstream.url, "HOME")])
        supervisor = _supervisor(tmp_path)
        below = descendants(supervisor)
        os.kill(supervisor, signal.SIGKILL)
        await asyncio.to_thread(_until_gone, below)
        statuses = await asyncio.to_thread(settle, cluster, 5)
        assert statuses["provider-acme"].phase is Phase.FAILED


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
async def test_nothing_is_left_when_the_parent_dies(tmp_path: Path, name: str) -> None:
    await asyncio.to_thread(_kill_parent, tmp_path, signal.Signals[name])


def _kill_parent(state_dir: Path, kill: signal.Signals) -> None:
    script = (
        "import pathlib, signal, sys\n"
        "from meritorder.deployments.local.cluster import LocalCluster\n"
        "with LocalCluster(pathlib.Path(sys.argv[1])) as cluster:\n"
        "    print(cluster.base_url, flush=True)\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-c", script, str(state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline().startswith(b"http://127.0.0.1:")
        below = descendants(parent.pid)
        assert len(below) > 5
        os.killpg(parent.pid, kill)
        parent.wait(15)
    _until_gone(below)


def _until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _supervisor(state_dir: Path) -> int:
    (found,) = (pid for pid in descendants(os.getpid()) if _command(pid)[-2:-1] == [str(state_dir)])
    return found


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _listeners(root: int) -> set[str]:
    """The local addresses on which the processes below `root` listen."""
    inodes = set()
    for pid in descendants(root):
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(_address(fields[1].partition(":")[0]))
    return found


def _address(hexadecimal: str) -> str:
    words = [bytes.fromhex(hexadecimal[start : start + 8])[::-1] for start in range(0, len(hexadecimal), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return str(socket.inet_ntop(family, b"".join(words)))
