"""What a request costs inside the ingress: CPU time of auth, admission, planning and settling together.

    python -m meritorder_loadtest.bench_dispatch

The real dispatcher runs, with real keys, leases and usage records on SQLite; only the backend is none: its answer is
there at once and complete, so that all that is measured is ours. HTTP, the parsing of the body, and the bytes of an
answer on their way are not in it. What the exchange of leases and the storing of records take in the background is not
in the figures of a request either, and has a line of its own.

The last line is {"cpu_us_p50": ..., "cpu_us_p99": ...}, in microseconds of the thread that serves requests.
"""

import asyncio
import contextlib
import gc
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from meritorder.backends.client import BackendClient, Timeouts
from meritorder.core.catalog import (
    Backend,
    Candidate,
    Capabilities,
    Catalog,
    Endpoint,
    Objective,
    Route,
    Team,
    Tier,
)
from meritorder.core.errors import RequestError
from meritorder.core.limits import Budget, Limits, Period
from meritorder.core.plan import Attempt, Score
from meritorder.core.pricing import FREE, Price
from meritorder.core.request import InferenceRequest
from meritorder.core.status import ApplicationStatus, Phase
from meritorder.core.usage import Usage, UsageRecord
from meritorder.ingress.admission import Admission, Ticket
from meritorder.ingress.auth import Authenticator
from meritorder.ingress.dispatch import Dispatcher, Ledger
from meritorder.ingress.leasing import LeaseAgent, Pace
from meritorder.ingress.planning import Planner
from meritorder.ingress.tally import Tally
from meritorder.ingress.world import World
from meritorder.ledger.database import open_database
from meritorder.ledger.keys import KeyLimits, KeyStore, load_secret
from meritorder.ledger.usage import UsageLog
from meritorder.telemetry import logs
from meritorder.telemetry.metrics import Metrics
from meritorder.wire.openai import parse_request
from meritorder_loadtest.figures import mean, quantile, table
from meritorder_loadtest.stopwatch import Lap, Stopwatch, clock_microseconds

KEYS, TEAMS = 1000, 50
SELF_RUN, HOSTED = 3, 7
WARM_UP, MEASURED, BY_STEP = 2000, 10_000, 3000
_CLIENTS = 32
_TURN = 100  # after so many requests the self-run models are full, and after as many they are not
_PROMPTS = 100
_WORD = "quota "  # six bytes, a token and a bit
_PROMPT_BYTES = (200, 1500, 6000)
_ANSWER_TOKENS = 120

_GENERATIVE = Capabilities(frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS}), context_window=32_768)


class CannedAnswer:
    """A streamed answer that is there as a whole; of what dispatch asks an `Answer`, all."""

    status, rejected = 200, False
    headers: Mapping[str, str] = {"content-type": "text/event-stream"}
    limits: Mapping[str, str] = {}

    def __init__(self, request: InferenceRequest) -> None:
        self.streamed = request.stream
        self.tokens = _ANSWER_TOKENS
        self.usage = Usage(request.text_bytes // 5 + 8, _ANSWER_TOKENS)
        self.explain: Callable[[], Mapping[str, Any]] | None = None

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if self.explain is not None:
            self.explain()  # which the usage event of a stream has in it
        yield b"data: [DONE]\n\n"

    async def close(self) -> None:
        pass


class NoBackend(BackendClient):
    """Opens nothing and has the answer."""

    async def open(self, attempt: Attempt, request: InferenceRequest, seconds: float | None = None) -> Any:
        return CannedAnswer(request)


@dataclass
class Intrusions:
    """What must not happen in the thread that serves requests: statements to the database, and syncs of the disk."""

    thread: int
    counts: Counter[str] = field(default_factory=Counter)

    def watch(self, engine: Engine) -> None:
        for what in ("before_cursor_execute", "begin", "commit"):
            event.listen(engine, what, lambda *_, what=what: self._note(f"database: {what}"))
        for name in ("fsync", "fdatasync", "sync", "syncfs"):
            if hasattr(os, name):
                self._watch_call(name)

    def _watch_call(self, name: str) -> None:
        inner = getattr(os, name)

        def watched(*args: Any) -> Any:
            self._note(f"disk: {name}")
            return inner(*args)

        setattr(os, name, watched)

    def _note(self, what: str) -> None:
        mine = threading.get_ident() == self.thread
        self.counts[f"{what}, in the serving thread" if mine else f"{what}, elsewhere"] += 1

    @property
    def here(self) -> int:
        return sum(count for what, count in self.counts.items() if what.endswith("in the serving thread"))


@dataclass
class Ingress:
    """The parts of the ingress that a request meets, put together as `ingress.main` does it."""

    world: World
    authenticator: Authenticator
    dispatcher: Dispatcher
    usage: UsageLog
    engine: Engine
    keys: Sequence[str]


@dataclass
class Run:
    """Of a number of requests: microseconds of each, and what became of them. Times in seconds."""

    laps: list[float] = field(default_factory=list)
    waited: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)


def catalog() -> Catalog:
    """Ten candidates of one route, and teams with limits and budgets that none of them reaches."""
    own = [
        Backend(f"own-{n}", Tier.SELF_RUN, f"model-own-{n}", f"own-{n}", _GENERATIVE, FREE, 16) for n in range(SELF_RUN)
    ]
    hosted = [
        Backend(
            f"hosted-{n}/chat", Tier.HOSTED, f"provider-{n}", "chat", _GENERATIVE,
            Price.flat(Decimal("0.2") + n, Decimal("0.8") + 4 * n, Decimal("0.1") + n), 1000,
            Limits(requests_per_minute=1_000_000, tokens_per_minute=10**10),
        )
        for n in range(HOSTED)
    ]  # fmt: skip
    backends = {one.name: one for one in (*own, *hosted)}
    candidates = tuple(Candidate(name, 0.95 - 0.01 * n) for n, name in enumerate(backends))
    route = Route("chat", candidates, Objective(0.5, 0.001, ttft_slo=1.0, timeout=60.0))
    teams = {f"team-{n}": Team(f"team-{n}", frozenset({"chat"}), *_bounds(10)) for n in range(TEAMS)}
    return Catalog(backends, {route.name: route}, teams)


def _bounds(scale: int) -> tuple[Limits, tuple[Budget, ...]]:
    limits = Limits(100_000 * scale, 1_000_000_000 * scale, 1000 * scale)
    budgets = (Budget(Period.DAILY, Decimal(1000 * scale)), Budget(Period.MONTHLY, Decimal(10_000 * scale)))
    return limits, budgets


def requests() -> list[InferenceRequest]:
    """Streamed chats of several lengths, some of which begin alike."""
    made = []
    for number in range(_PROMPTS):
        text = _WORD * (_PROMPT_BYTES[number % len(_PROMPT_BYTES)] // len(_WORD))
        body = {
            "model": "chat", "stream": True, "max_tokens": 256,
            "messages": [
                {"role": "system", "content": f"You are assistant {number % 7}. {text}"},
                {"role": "user", "content": f"Question {number}: what is a merit order?"},
            ],
        }  # fmt: skip
        made.append(parse_request(f"req_{number}", Endpoint.CHAT_COMPLETIONS, json.dumps(body).encode()))
    return made


def teach(world: World, asked: Sequence[InferenceRequest]) -> None:
    """Let each backend have answered some requests, with the headers that providers send."""
    now = time.monotonic()
    for number, backend in enumerate(world.catalog.backends.values()):
        limits = {
            "x-ratelimit-limit-requests": "1000000", "x-ratelimit-remaining-requests": "999000",
            "x-ratelimit-limit-tokens": "1000000000", "x-ratelimit-remaining-tokens": "999000000",
            "x-ratelimit-reset-requests": "60ms", "x-ratelimit-reset-tokens": "60ms",
        }  # fmt: skip
        for round_ in range(30):
            request = asked[round_ % len(asked)]
            ttft = 0.1 + 0.02 * number + 0.001 * round_
            attempt = Attempt(
                backend, "http://127.0.0.1:1", Score(0, 0, 0, 0), input_tokens=request.text_bytes // 5,
                output_tokens=_ANSWER_TOKENS,
            )  # fmt: skip
            place = world.occupy(attempt, now - 3)
            world.opened(place, limits if backend.tier is Tier.HOSTED else {}, True, now - 3 + ttft)
            usage = Usage(request.text_bytes // 5 + 8, _ANSWER_TOKENS)
            world.completed(place, request, usage, now - 3 + ttft, now - 2)
            world.vacate(place, now - 2)


class Saturation:
    """Fills the self-run models, or empties them, so that both kinds of backend have their turn."""

    def __init__(self, world: World) -> None:
        self._world = world
        own = [one for one in world.catalog.backends.values() if one.tier is Tier.SELF_RUN]
        self._attempts = [Attempt(one, "", Score(0, 0, 0, 0)) for one in own for _ in range(one.concurrency or 0)]
        self._places: list[Any] = []

    def turn(self) -> None:
        now = time.monotonic()
        if self._places:
            for place in self._places:
                self._world.vacate(place, now)
            self._places = []
        else:
            self._places = [self._world.occupy(attempt, now) for attempt in self._attempts]


@asynccontextmanager
async def ingress(folder: Path) -> AsyncIterator[Ingress]:
    async with AsyncExitStack() as stack:
        world, metrics = World(), Metrics()
        world.catalog = catalog()
        world.statuses = {
            one.application: ApplicationStatus(one.application, Phase.READY, "http://127.0.0.1:1", "", 1, 1)
            for one in world.catalog.backends.values()
        }
        engine = open_database(folder)
        stack.callback(engine.dispose)
        store = KeyStore(engine, load_secret(folder))
        bounds = KeyLimits(*_bounds(1))
        keys = [store.create(f"team-{number % TEAMS}", f"key {number}", bounds)[1] for number in range(KEYS)]
        usage = UsageLog(engine, folder / "spool", "benchmark")
        stack.callback(usage.close)
        agent = await stack.enter_async_context(
            # However busy the machine is, nobody is to be refused.
            LeaseAgent(engine, "benchmark", Pace(patience=10.0), all_stored=lambda: usage.waiting == 0)
        )

        def end(record: UsageRecord) -> None:
            usage.end(record)
            logs.log_request(record)

        # The methods are looked up at each call, so that they can be watched later.
        ledger = Ledger(lambda record: usage.begin(record), end, lambda: usage.full)
        dispatcher = Dispatcher(world, Planner(world), Admission(agent), NoBackend(Timeouts()), ledger, metrics)
        yield Ingress(world, Authenticator(store), dispatcher, usage, engine, keys)


async def one_request(ingress: Ingress, authorization: str, request: InferenceRequest) -> Mapping[str, str]:
    """What `ingress.http` does, but for HTTP."""
    caller = ingress.authenticator.caller(authorization, ingress.world.catalog)
    async with ingress.dispatcher.dispatch(caller, request) as reply, aclosing(reply.chunks) as chunks:
        async for _ in chunks:
            pass
        return reply.headers


async def run(ingress: Ingress, asked: Sequence[InferenceRequest], count: int, saturation: Saturation) -> Run:
    """Send `count` requests; during half of them the self-run models are full.

    Some keys are used much and most of them little: the n-th as often as 1/n, which is how such things are shared out.
    """
    made = Run()
    holders = random.Random(1).choices(ingress.keys, [1 / rank for rank in range(1, KEYS + 1)], k=count)

    async def one(number: int) -> None:
        lap = Lap()
        authorization = f"Bearer {holders[number]}"
        try:
            headers = await lap.measure(one_request(ingress, authorization, asked[number % len(asked)]))
        except RequestError as error:
            made.refused[error.code] += 1
            return
        made.laps.append(lap.microseconds)
        made.waited += lap.suspended > 0
        made.backends[headers["x-meritorder-backend"]] += 1

    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            if number % _TURN == 0:
                saturation.turn()
            await one(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return made


STEPS: dict[str, tuple[tuple[Any, str, str], ...]] = {
    "auth": ((Authenticator, "caller", ""),),
    "find the route": ((Planner, "route", ""),),
    "admit": ((Admission, "admit", ""),),
    "plan and reserve": ((Dispatcher, "_plan", ""), (Planner, "plan", "ranking")),
    "attempt, without the backend": (
        (Dispatcher, "_attempt", ""), (World, "occupy", "occupy"), (World, "opened", "take note of the beginning"),
        (Metrics, "attempted", "metrics"),
    ),
    "begin the record": ((Dispatcher, "_begin", ""), (UsageLog, "begin", "spool")),
    "response headers": ((Ticket, "headers", ""),),
    "explanation in the stream": ((Tally, "explanation", ""),),
    "take note of the answer": ((World, "completed", ""),),
    "leave the backend": ((World, "vacate", ""),),
    "settle": (
        (Dispatcher, "_settle", ""), (Ticket, "settle", "ticket"), (UsageLog, "end", "spool"),
        (Metrics, "settled", "metrics"), (logs, "log_request", "log"),
    ),
}  # fmt: skip
"""Of each step, the method, and those of its parts that have a line of their own."""

ACCOUNTING = ("auth", "find the route", "admit", "plan and reserve", "begin the record", "settle")
TELEMETRY = ("settle: metrics", "settle: log")


def watch_steps() -> Stopwatch:
    watch = Stopwatch()
    for step, parts in STEPS.items():
        for target, method, part in parts:
            watch.watch(target, method, f"{step}: {part}" if part else step)
    return watch


def step_rows(watch: Stopwatch, requests: int, clock: float) -> list[tuple[str, str]]:
    """The mean of each step and part, and of what only decides and accounts, without what each measurement costs."""
    means = {name: spent / requests for name, spent in watch.spent.items()}
    rows = []
    for step, parts in STEPS.items():
        names = [f"{step}: {part}" for _, _, part in parts if part]
        means[step] -= clock * (1 + 2 * len(names))  # both looks at the clock for a part are in its step, too
        rows.append((step, f"{means[step]:.1f}"))
        for name in names:
            means[name] -= clock
            rows.append((f"  of which {name.removeprefix(f'{step}: ')}", f"{means[name]:.1f}"))
    alone = sum(means[step] for step in ACCOUNTING) - sum(means[part] for part in TELEMETRY)
    return [*rows, ("auth, admission, planning and settling, without log and metrics", f"{alone:.1f}")]


async def main(folder: Path) -> None:
    async with ingress(folder) as parts:
        await measure(parts)


async def measure(parts: Ingress) -> None:
    asked, saturation = requests(), Saturation(parts.world)
    teach(parts.world, asked)
    await run(parts, asked, WARM_UP, saturation)
    intrusions = Intrusions(threading.get_ident())
    intrusions.watch(parts.engine)
    gc.collect()  # as the ingress does when it has started
    gc.freeze()
    process, wall = time.process_time(), time.monotonic()
    made = await run(parts, asked, MEASURED, saturation)
    process, wall = time.process_time() - process, time.monotonic() - wall
    watch = watch_steps()
    stepped = await run(parts, asked, BY_STEP, saturation)
    rows = step_rows(watch, BY_STEP, clock_microseconds())
    print(f"By step, microseconds of CPU, means of {BY_STEP} requests:\n")
    print(table(("step", "us"), rows))
    print(f"\nWith the watches, the whole was {mean(stepped.laps):.1f} us; without them, over {MEASURED} requests:\n")
    print(table(("", "us"), [
        ("p50", f"{quantile(made.laps, 0.5):.1f}"), ("p90", f"{quantile(made.laps, 0.9):.1f}"),
        ("p99", f"{quantile(made.laps, 0.99):.1f}"), ("mean", f"{mean(made.laps):.1f}"),
        ("mean, with all background work", f"{process / MEASURED * 1e6:.1f}"),
    ]))  # fmt: skip
    own = sum(count for name, count in made.backends.items() if name.startswith("own"))
    print(f"\n{SELF_RUN + HOSTED} candidates, {KEYS} keys of {TEAMS} teams, {MEASURED / wall:.0f} requests/s; "
          f"self-run models served {own}, hosted ones {MEASURED - own}.")  # fmt: skip
    print(f"Refused: {dict(made.refused) or 'none'}. Requests that waited for a lease: {made.waited}. "
          f"Database calls and disk syncs in the serving thread: {intrusions.here}.")  # fmt: skip
    for what, count in sorted(intrusions.counts.items()):
        print(f"  {what}: {count}")
    p50, p99 = quantile(made.laps, 0.5), quantile(made.laps, 0.99)
    print(json.dumps({"cpu_us_p50": round(p50, 1), "cpu_us_p99": round(p99, 1)}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="mo-bench-") as temporary, open(os.devnull, "w") as null:
        with contextlib.redirect_stderr(null):
            logs.configure()  # a line is written for each request, to where it disturbs nobody
        asyncio.run(main(Path(temporary)))
