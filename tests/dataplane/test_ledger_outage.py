"""The ingress while its database is away, and a worker that is killed: nobody is told a lie, and no record is lost.

The database is a real PostgreSQL, which is stopped and started under load.
"""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import Engine, func, select
from tests.conftest import PostgreSQL
from tests.dataplane.conftest import START_SECONDS, eventually
from tests.dataplane.scripted import Answered, Platform, TeamsIngress, ask, platform, provider, recorded, team, words

from meritorder.core.usage import Outcome
from meritorder.ledger.database import exact_sum, open_database, reading
from meritorder.ledger.schema import charges, requests
from meritorder.testing.upstream import Behaviour

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEAMS = ("free", "budgeted", "counted")
AT_ONCE = 2  # of each team
STRANGER = "mo-nobody-has-this-key"

MANIFESTS = [
    provider("hosted", 1, 2),
    team("free"),
    team("budgeted", budgets=[{"period": "daily", "amount": 1000}]),
    team("counted", limits={"rpm": 1_000_000, "tpm": 1_000_000_000, "concurrency": 100}),
]


@dataclass
class PostgresIngress(TeamsIngress):
    """One whose ledger is the PostgreSQL database at `ledger_url`."""

    ledger_url: str = field(default="", repr=False)

    def restart(self) -> None:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("MERITORDER_DATABASE_URL", self.ledger_url)
            super().restart()

    @contextlib.contextmanager
    def database(self) -> Iterator[Engine]:
        engine = open_database(self.ledger_url)
        try:
            yield engine
        finally:
            engine.dispose()


@pytest_asyncio.fixture(loop_scope="session")
async def place(tmp_path: Path, database_url: str) -> AsyncIterator[Platform]:
    async with platform(tmp_path, *MANIFESTS, ingress=PostgresIngress, ledger_url=database_url) as made:
        yield made


@dataclass
class Load:
    """Clients of all teams that send requests, a few at once, until they are stopped. It keeps what they got."""

    place: Platform
    answers: list[tuple[str, Answered]] = field(default_factory=list)
    stopped: bool = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        tasks = [asyncio.create_task(self._client(name)) for name in TEAMS for _ in range(AT_ONCE)]
        try:
            yield self
        finally:
            self.stopped = True
            await asyncio.gather(*tasks)

    async def _client(self, name: str) -> None:
        async with self.place.client(name) as http:
            while not self.stopped:
                messages = [{"role": "user", "content": words(10)}]
                answered = await ask(http, "hosted/chat", messages=messages, max_tokens=20)
                self.answers.append((name, answered))
                if answered.status != 200:
                    await asyncio.sleep(0.01)  # as any client would, at the least

    def since(self, start: int, name: str) -> Counter[int]:
        """The statuses of a team's answers from the `start`-th answer on."""
        return Counter(answered.status for who, answered in self.answers[start:] if who == name)

    async def each(self, count: int, status: int = 200, teams: tuple[str, ...] = TEAMS) -> None:
        """Return when from now on each of `teams` has got so many answers of that status."""
        start = len(self.answers)

        async def enough() -> bool:
            return all(self.since(start, name)[status] >= count for name in teams)

        await eventually(enough, 30.0)


@contextlib.asynccontextmanager
async def outage(postgresql: PostgreSQL) -> AsyncIterator[None]:
    """Without the database; it is back at the end."""
    await asyncio.to_thread(postgresql.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(postgresql.start)


class TestADatabaseThatGoesAway:
    async def test_who_was_known_goes_on_and_nothing_is_lost(self, place: Platform, postgresql: PostgreSQL) -> None:
        load = Load(place)
        async with load.running():
            await load.each(20)
            before = len(load.answers)
            async with outage(postgresql):
                # What is leased is spent first; then there is no telling whether there would be more.
                await load.each(50, teams=("free",))
                await load.each(1, 503, teams=("budgeted", "counted"))
                stranger = await stranger_gets(place, 503)
                for _ in range(10):
                    assert (await stranger_gets(place)).status == 503
                during = len(load.answers)
            await load.each(20)

        assert stranger.error["code"] == "ledger_unavailable"
        assert int(stranger.headers["retry-after"]) > 0
        assert set(load.since(0, "free")) == {200}, "nothing limits it, so nothing had to be asked"
        meanwhile = {
            name: {answered.status for who, answered in load.answers[before:during] if who == name} for name in TEAMS
        }
        assert meanwhile["budgeted"] == {200, 503}, "it went on within its lease, and was told the truth after that"
        assert meanwhile["counted"] <= {200, 503}, "so was this one; if a new minute begins, nothing of it is leased"
        for _, answered in load.answers:
            if answered.status != 200:
                assert answered.error["code"] == "ledger_unavailable"
                assert int(answered.headers["retry-after"]) > 0
        assert (await stranger_gets(place, 401)).status == 401, "now it is known to be wrong"
        await assert_all_is_stored_once(place, [answered.request_id for _, answered in load.answers])

    async def test_what_was_served_meanwhile_survives_the_ingress(
        self, place: Platform, postgresql: PostgreSQL
    ) -> None:
        async with place.client("free") as http:
            assert (await ask(http, "hosted/chat")).status == 200
            async with outage(postgresql):
                answers = [await ask(http, "hosted/chat") for _ in range(20)]
                await place.ingress.stop()
        assert {answered.status for answered in answers} == {200}
        assert "usage records wait in" in place.ingress.log
        place.ingress.restart()
        await assert_all_is_stored_once(place, [answered.request_id for answered in answers])


class TestAWorkerThatIsKilled:
    async def test_a_stream_that_it_had_begun_has_one_record(self, place: Platform) -> None:
        place.script(hosted=Behaviour(fail_after_chunks=4, fail_mode="stall"))
        body = {"model": "hosted/chat", "stream": True, "messages": [{"role": "user", "content": words(10)}]}
        with contextlib.suppress(aiohttp.ClientError):
            async with place.client("free") as http, http.post("/v1/chat/completions", json=body) as response:
                request_id = response.headers["x-request-id"]
                await response.content.readany()
                kill_worker(place)
                await response.read()
        await again(place)
        record = await recorded(place, request_id)
        assert (record.outcome, record.backend, record.status) == (Outcome.FAILED, "hosted/chat", 200)
        [charge] = record.charges
        assert charge.usage.estimated
        assert charge.usage.input_tokens == 10
        assert charge.usage.output_tokens >= 1, "what is known to have been served is paid"

    async def test_all_that_had_ended_have_theirs(self, place: Platform) -> None:
        async with place.client("budgeted") as http:
            answers = await asyncio.gather(*(ask(http, "hosted/chat", max_tokens=20) for _ in range(50)))
        kill_worker(place)
        await again(place)
        assert {answered.status for answered in answers} == {200}
        await assert_all_is_stored_once(place, [answered.request_id for answered in answers])


async def stranger_gets(place: Platform, status: int | None = None) -> Answered:
    """What somebody gets whose key nobody has seen; with `status`, as soon as it is that."""

    async def answered() -> Answered | None:
        async with place.ingress.session(STRANGER) as http:
            got = await ask(http, "hosted/chat")
        return got if status in (None, got.status) else None

    got: Answered = await eventually(answered)
    return got


def kill_worker(place: Platform) -> None:
    os.kill(place.ingress.worker(), signal.SIGKILL)


async def again(place: Platform) -> None:
    """Start the ingress again on what is left of it."""
    place.ingress.kill()
    await place.ingress.ended()
    place.ingress.restart()
    await eventually(place.ingress._answers, START_SECONDS)


async def assert_all_is_stored_once(place: Platform, request_ids: list[str]) -> None:
    """Each of the requests has no more than one record, all that were served have one, and it says what was served."""
    await place.upstream.wait_until(lambda received: all(one.outcome for one in received))
    served = place.upstream.served["sim-hosted"]

    async def stored() -> bool:
        with place.ingress.database() as engine, reading(engine) as connection:
            return connection.scalar(select(func.count()).select_from(charges)) == served.requests

    await eventually(stored, 20.0)
    with place.ingress.database() as engine, reading(engine) as connection:
        ids = Counter(connection.scalars(select(requests.c.request_id)))
        tokens = (func.sum(charges.c.input_tokens), func.sum(charges.c.output_tokens))
        [(input_tokens, output_tokens)] = connection.execute(select(*tokens)).all()
        cost = connection.scalar(select(exact_sum(charges.c.cost_usd)))
    assert not [one for one, count in ids.items() if count > 1]
    assert served.requests == len(place.received("hosted"))
    assert (input_tokens, output_tokens) == (served.prompt_tokens, served.completion_tokens)
    assert cost == Decimal(served.prompt_tokens + 2 * served.completion_tokens) / 10**6
