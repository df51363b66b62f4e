"""The ingress as a process: what it takes over while it runs, how it stops, and what it never says."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.dataplane.conftest import (
    MANIFESTS,
    PROVIDER_KEY,
    START_SECONDS,
    Ingress,
    Upstreams,
    chat,
    eventually,
    streamed,
)

from meritorder.core.usage import Outcome
from meritorder.ledger.keys import KeyStore, load_secret
from meritorder.testing.upstream import Behaviour, Script

pytestmark = pytest.mark.asyncio(loop_scope="session")

WITHIN_A_SECOND = 1.0
DRAIN_SECONDS = 2.0
SOON = 1.0
HALF = 1000


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def own(everything: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ingress]:
    """An ingress whose configuration the tests of this module change."""
    async with Ingress(tmp_path_factory.mktemp("own")).run(everything.endpoints) as ingress:
        yield ingress


@pytest_asyncio.fixture(loop_scope="session")
async def session(own: Ingress, upstreams: Upstreams) -> AsyncIterator[aiohttp.ClientSession]:
    own.manifest_file.write_text(MANIFESTS)
    own.say(upstreams.endpoints)
    async with own.session() as http:
        await eventually(lambda: as_in_the_beginning(http))
        yield http


@pytest_asyncio.fixture(loop_scope="session")
async def stopping(everything: Upstreams, upstreams: Upstreams, tmp_path: Path) -> AsyncIterator[Ingress]:
    """An ingress to be stopped, which gives open requests two seconds."""
    arguments = ("--drain-seconds", str(DRAIN_SECONDS))
    async with Ingress(tmp_path / "state", arguments=arguments).run(everything.endpoints) as ingress:
        yield ingress


@pytest_asyncio.fixture(loop_scope="session")
async def impatient(everything: Upstreams, upstreams: Upstreams, tmp_path: Path) -> AsyncIterator[Ingress]:
    """An ingress that waits for a client for one second."""
    arguments = ("--body-seconds", str(SOON), "--client-stall-seconds", str(SOON))
    async with Ingress(tmp_path / "state", arguments=arguments).run(everything.endpoints) as ingress:
        yield ingress


class TestKeys:
    async def test_a_new_key_works_and_a_revoked_one_is_refused_within_a_second(
        self, own: Ingress, session: aiohttp.ClientSession
    ) -> None:
        with own.database() as engine:
            store = KeyStore(engine, load_secret(own.folder))
            key, text = store.create("demo")
            headers = {"authorization": f"Bearer {text}"}

            async def status_is(wanted: int) -> bool:
                async with session.get("/v1/models", headers=headers) as response:
                    return response.status == wanted

            await eventually(lambda: status_is(200), WITHIN_A_SECOND)
            assert store.revoke(key.id)
            await eventually(lambda: status_is(401), WITHIN_A_SECOND)

    async def test_a_key_of_a_team_that_is_gone_is_refused(self, own: Ingress, session: aiohttp.ClientSession) -> None:
        own.manifest_file.write_text(MANIFESTS.replace("{name: demo}", "{name: other}"))

        async def refused() -> Any:
            async with session.get("/v1/models") as response:
                return (await response.json())["error"] if response.status == 403 else None

        error = await eventually(refused, WITHIN_A_SECOND)
        assert error["code"] == "team_not_found"
        assert error["message"] == "The key's team 'demo' has no manifest; apply a Team of that name."


class TestManifests:
    async def test_a_changed_file_is_in_force_within_a_second(
        self, own: Ingress, session: aiohttp.ClientSession
    ) -> None:
        own.manifest_file.write_text(
            MANIFESTS.replace("{name: assistant}", "{name: helper}").replace("[assistant]", "[helper]")
        )

        async def called_helper() -> bool:
            async with session.post("/v1/chat/completions", json=chat("helper")) as response:
                return response.status == 200

        await eventually(called_helper, WITHIN_A_SECOND)
        async with session.post("/v1/chat/completions", json=chat("assistant")) as response:
            assert response.status == 404

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            pytest.param("kind: [", "not valid YAML", id="not YAML"),
            pytest.param(MANIFESTS.replace("input: 10", "input: -10"), "price.input", id="a value out of range"),
            pytest.param(
                MANIFESTS.replace("provider: second/chat", "provider: secnd/chat"),
                "'secnd/chat'",
                id="a reference to nothing",
            ),
            pytest.param("", "no manifests found", id="nothing"),
        ],
    )
    async def test_a_broken_file_is_reported_and_the_last_good_state_stays_in_force(
        self, own: Ingress, session: aiohttp.ClientSession, text: str, problem: str
    ) -> None:
        await eventually(lambda: config(session, ok=True))
        own.manifest_file.write_text(text)
        reported = await eventually(lambda: config(session, ok=False), WITHIN_A_SECOND)
        assert problem in reported
        assert str(own.manifest_file.parent) in reported
        assert "meritorder_config_last_reload_successful 0.0" in await text_of(session, "/metrics")
        assert "the manifests are not valid, and those of before stay in force" in own.log
        async with session.post("/v1/chat/completions", json=chat()) as response:
            assert response.status == 200
        own.manifest_file.write_text(MANIFESTS)
        await eventually(lambda: config(session, ok=True), WITHIN_A_SECOND)
        assert "meritorder_config_last_reload_successful 1.0" in await text_of(session, "/metrics")

    async def test_a_request_keeps_the_configuration_that_it_began_with(
        self, own: Ingress, session: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(ttft_ms=1500, status=500)))
        request = asyncio.create_task(session.post("/v1/chat/completions", json=chat()))
        await upstreams.first.wait_until(lambda requests: requests)
        generation = json.loads(await text_of(session, "/readyz"))["configuration"]["generation"]
        own.manifest_file.write_text(MANIFESTS.replace(", {provider: second/chat}]", "]", 1))

        async def changed() -> bool:
            return bool(json.loads(await text_of(session, "/readyz"))["configuration"]["generation"] > generation)

        await eventually(changed)
        async with await request as response:
            assert response.headers["x-meritorder-backend"] == "second/chat"


class TestApplications:
    async def test_readiness_follows_the_status_file(
        self, own: Ingress, session: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        own.say({})

        async def status_is(wanted: int) -> bool:
            async with session.get("/readyz") as response:
                return response.status == wanted

        await eventually(lambda: status_is(503), WITHIN_A_SECOND)
        async with session.post("/v1/chat/completions", json=chat()) as response:
            assert response.status == 503
            message = (await response.json())["error"]["message"]
        assert "'first/chat' waits to be deployed; 'second/chat' waits to be deployed." in message
        own.say(upstreams.endpoints)
        await eventually(lambda: status_is(200), WITHIN_A_SECOND)

    async def test_a_status_file_that_cannot_be_read_is_reported_and_changes_nothing(
        self, own: Ingress, session: aiohttp.ClientSession, upstreams: Upstreams
    ) -> None:
        (own.folder / "status.json").write_text("[{")

        async def reported() -> bool:
            return "the status file cannot be read, and what was known stays in force" in own.log

        await eventually(reported, WITHIN_A_SECOND)
        async with session.post("/v1/chat/completions", json=chat()) as response:
            assert response.status == 200


class TestAStop:
    async def test_open_streams_finish_and_new_connections_are_refused(
        self, stopping: Ingress, upstreams: Upstreams
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(tokens=40, itl_ms=25)))
        async with stopping.session() as http:
            async with http.post("/v1/chat/completions", json=chat(stream=True)) as response:
                await response.content.readany()
                stopping.ask_to_stop()
                await eventually(lambda: refused(stopping))
                body = await response.read()
            assert body.endswith(b"data: [DONE]\n\n")
        assert await stopping.ended() == 0
        [record] = stopping.records([response.headers["x-request-id"]])
        assert record.outcome is Outcome.COMPLETED

    async def test_a_stream_that_outlasts_the_drain_time_is_told_and_settled(
        self, stopping: Ingress, upstreams: Upstreams
    ) -> None:
        upstreams.first.set_script(Script.always(Behaviour(fail_after_chunks=4, fail_mode="stall")))
        async with (
            stopping.session() as http,
            http.post("/v1/chat/completions", json=chat(stream=True)) as response,
        ):
            await response.content.readany()
            started = time.monotonic()
            stopping.ask_to_stop()
            body = await response.read()
        assert DRAIN_SECONDS - 0.2 < time.monotonic() - started < DRAIN_SECONDS + 2
        last = json.loads(body.removesuffix(b"\n\n").rpartition(b"data: ")[2])
        assert last["error"]["code"] == "shutting_down"
        assert b"[DONE]" not in body
        assert await stopping.ended() == 0
        [record] = stopping.records([response.headers["x-request-id"]])
        assert (record.outcome, record.backend) == (Outcome.FAILED, "first/chat")
        assert record.usage.output_tokens > 0
        await upstreams.first.wait_until(lambda requests: requests[0].outcome == "client_disconnected")

    async def test_a_request_without_an_answer_is_told_too(self, stopping: Ingress, upstreams: Upstreams) -> None:
        upstreams.first.set_script(Script.always(Behaviour(hang=True)))
        async with stopping.session() as http:
            request = asyncio.create_task(http.post("/v1/chat/completions", json=chat()))
            await upstreams.first.wait_until(lambda requests: requests)
            stopping.ask_to_stop()
            async with await request as response:
                assert response.status == 503
                assert (await response.json())["error"]["code"] == "shutting_down"
        assert await stopping.ended() == 0
        [record] = stopping.records([response.headers["x-request-id"]])
        assert (record.outcome, record.status, record.backend) == (Outcome.FAILED, 503, "first/chat")
        assert record.usage.estimated
        assert record.cost > 0

    async def test_a_request_that_has_not_come_whole_is_told_and_does_not_hold_it_up(self, stopping: Ingress) -> None:
        async with half_a_request(stopping) as (reader, _):
            stopping.ask_to_stop()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
            assert json.loads(await reader.read())["error"]["code"] == "shutting_down"
            assert await stopping.ended(DRAIN_SECONDS) == 0

    async def test_an_idle_connection_does_not_hold_it_up(self, stopping: Ingress) -> None:
        async with stopping.session() as http:
            async with http.get("/healthz") as response:
                assert response.status == 200
            stopping.ask_to_stop()
            assert await stopping.ended(DRAIN_SECONDS / 2) == 0

    async def test_no_worker_outlives_the_first_process(self, stopping: Ingress) -> None:
        worker = stopping.worker()
        stopping.kill()

        async def ended() -> bool:
            return not os.path.exists(f"/proc/{worker}")  # noqa: ASYNC240, it is no disk

        await eventually(ended)
        assert await refused(stopping)

    async def test_what_was_served_is_what_was_counted(self, stopping: Ingress, upstreams: Upstreams) -> None:
        upstreams.first.set_script(Script.always(Behaviour(ttft_ms=30, itl_ms=5)))

        async def one(http: aiohttp.ClientSession, number: int) -> None:
            headers = {"x-request-id": f"mixed-{number}"}
            with contextlib.suppress(TimeoutError):
                # Some leave at once, some in mid-stream, and the last of eight stays.
                async with asyncio.timeout(0.02 * (number % 8) if number % 8 < 7 else None):
                    body = chat(stream=number % 2 == 0)
                    async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
                        await response.read()

        async with stopping.session() as http:
            await asyncio.gather(*(one(http, number) for number in range(80)))
            await eventually(lambda: idle(http))
            counted = sum(
                float(line.rpartition(" ")[2])
                for line in (await text_of(http, "/metrics")).splitlines()
                if line.startswith("meritorder_requests_total")
            )
        await stopping.stop()
        records = stopping.records([f"mixed-{number}" for number in range(80)])
        assert len(records) == counted
        assert len({record.request_id for record in records}) == len(records)
        assert {record.outcome for record in records} == {Outcome.COMPLETED, Outcome.DISCONNECTED}


class TestSecrecy:
    async def test_no_secret_is_in_a_log_an_error_or_a_metric(self, stopping: Ingress, upstreams: Upstreams) -> None:
        prompt, header = "the quick brown prompt", "value-of-a-header"
        said = ""
        scripts = [
            Behaviour(),
            Behaviour(status=401),
            Behaviour(status=500, error_message=f"you said: {prompt}"),
            Behaviour(refuse_connection=True),
            Behaviour(fail_after_chunks=3, fail_mode="error_event", error_message=prompt),
            Behaviour(fail_after_chunks=3, fail_mode="malformed"),
        ]
        bodies = [chat(stream=True), chat(), chat(messages=prompt), chat("none"), chat(temperature=prompt)]
        async with stopping.session() as http:
            for behaviour in scripts:
                for upstream in (upstreams.first, upstreams.second):
                    upstream.set_script(Script.always(behaviour))
                for body in bodies:
                    if isinstance(body["messages"], list):
                        body["messages"] = [{"role": "user", "content": prompt}]
                    for key in (stopping.keys["demo"], "mo-wrong-key-of-somebody"):
                        headers = {"authorization": f"Bearer {key}", "x-secret": header}
                        async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
                            said += await response.text() + str(response.headers)
            said += await text_of(http, "/metrics") + await text_of(http, "/readyz")
        await stopping.stop()
        assert "request" in [json.loads(line)["message"] for line in stopping.log.splitlines()]
        addresses = [url.removeprefix("http://") for url in upstreams.endpoints.values()]
        secrets = [PROVIDER_KEY, stopping.keys["demo"], "mo-wrong-key-of-somebody", prompt, header, *addresses]
        assert [secret for secret in secrets if secret in said + stopping.log] == []

    async def test_every_line_of_the_log_is_json(self, stopping: Ingress) -> None:
        async with stopping.session() as http, http.post("/v1/chat/completions", json=chat()) as response:
            await response.read()
        await stopping.stop()
        lines = [json.loads(line) for line in stopping.log.splitlines()]
        assert {"time", "level", "logger", "message"} <= lines[0].keys()
        [line] = [line for line in lines if line["message"] == "request"]
        assert (line["team"], line["backend"], line["outcome"]) == ("demo", "first/chat", "completed")


class TestStarting:
    async def test_it_starts_with_broken_manifests_and_says_so(self, tmp_path: Path) -> None:
        ingress = Ingress(tmp_path / "state", manifests="kind: Nonsense", answers_with=503)
        async with ingress.run({}):
            async with ingress.session() as http, http.get("/readyz") as response:
                report = await response.json()
            assert report["status"] == "not ready"
            assert "Nonsense" in report["configuration"]["problem"]

    @pytest.mark.parametrize(
        ("file", "said"),
        [
            pytest.param("key.secret", "is damaged; restore it, or remove it and make all keys anew", id="the secret"),
            pytest.param("meritorder.db", "cannot be opened: file is not a database", id="the database"),
        ],
    )
    async def test_a_state_directory_that_cannot_be_used_is_one_line_and_the_end(
        self, tmp_path: Path, file: str, said: str
    ) -> None:
        ingress = Ingress(tmp_path / "state")
        ingress.folder.mkdir()
        (ingress.folder / file).write_bytes(b"damaged" * 1000)
        ingress.restart()
        assert await ingress.ended(START_SECONDS) == 1
        [line] = [json.loads(line) for line in ingress.log.splitlines()]
        assert line["level"] == "error"
        assert line["message"].endswith(said)


class TestClientsThatTakeTheirTime:
    async def test_a_body_that_does_not_come_is_waited_for_for_a_while(self, impatient: Ingress) -> None:
        started = time.monotonic()
        async with half_a_request(impatient) as (reader, _):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")
            assert SOON < time.monotonic() - started < SOON + 2
            error = json.loads(await reader.read())["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "request_timeout")
        assert error["message"] == f"The request did not come whole within {SOON:g} s; send it again."

    async def test_one_that_comes_slowly_and_in_time_is_read(self, impatient: Ingress) -> None:
        async with half_a_request(impatient) as (reader, writer):
            await asyncio.sleep(SOON / 2)
            writer.write(b" " * HALF)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")

    async def test_one_that_does_not_read_gives_its_place_at_the_backend_free(
        self, impatient: Ingress, upstreams: Upstreams
    ) -> None:
        big = b'data: {"choices":[{"delta":{"content":"' + b"x" * 100_000 + b'"}}]}\n\n'
        upstreams.raw.reset(streamed(*([big] * 400), b"data: [DONE]\n\n"))
        async with (
            impatient.session() as http,
            http.post("/v1/chat/completions", json=chat("raw/chat", stream=True)) as response,
        ):
            record = await impatient.record(response.headers["x-request-id"])
            assert (record.outcome, record.status) == (Outcome.DISCONNECTED, 499)
            assert record.usage.output_tokens > 0
            await eventually(lambda: idle(http))
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        assert "a request met a fault" not in impatient.log


@contextlib.asynccontextmanager
async def half_a_request(ingress: Ingress) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which the body of a request has come half."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ingress.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ingress.keys['demo']}\r\n"
    writer.write(f"{head}content-length: {2 * HALF}\r\n\r\n".encode() + b" " * HALF)
    await writer.drain()
    await asyncio.sleep(0.2)
    yield reader, writer
    writer.close()


async def as_in_the_beginning(http: aiohttp.ClientSession) -> bool:
    """Whether MANIFESTS are in force, all applications are up, and no backend is known to have failed."""
    report = json.loads(await text_of(http, "/readyz"))
    routes = {route["route"]: route["ready"] for route in report["routes"]}
    if report["configuration"]["problem"] or routes.get("assistant") != ["first/chat", "second/chat"]:
        return False
    async with http.post("/v1/chat/completions", json=chat()) as response:
        return response.status == 200 and response.headers["x-meritorder-backend"] == "first/chat"


async def config(http: aiohttp.ClientSession, *, ok: bool) -> Any:
    """The problem with the configuration, or True where there is none and none is expected."""
    problem = json.loads(await text_of(http, "/readyz"))["configuration"]["problem"]
    return problem is None if ok else problem


async def idle(http: aiohttp.ClientSession) -> bool:
    lines = (await text_of(http, "/metrics")).splitlines()
    return all(line.endswith(" 0.0") for line in lines if line.startswith("meritorder_in_flight_requests{"))


async def text_of(http: aiohttp.ClientSession, path: str) -> str:
    async with http.get(path) as response:
        return await response.text()


async def refused(ingress: Ingress) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", ingress.port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False
