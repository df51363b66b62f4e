"""What the ledger says was used is what the upstream says it served, to the token and to the last digit of a dollar.

Mixed requests of several teams go to backends at several prices, some of which fail, break off or are left by their
clients. The upstream keeps its own account (`ScriptedUpstream.served`), and this file does its own arithmetic on it.
Where the upstream reports no usage the ledger estimates; prompts are made so that the estimate has to be exact.

`MERITORDER_RECONCILED_REQUESTS` is how many requests are sent.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import Connection, func, select
from tests.dataplane.conftest import eventually
from tests.dataplane.scripted import Platform, model, platform, provider, route, team, words

from meritorder.core.limits import Allowance, Budget, Period
from meritorder.core.usage import Outcome
from meritorder.ledger.database import exact_sum, reading
from meritorder.ledger.reports import By, Row, usage_report
from meritorder.ledger.schema import charges, requests
from meritorder.ledger.spending import budget_states
from meritorder.testing.upstream import Behaviour, ReceivedRequest, Rule, Script

pytestmark = pytest.mark.asyncio(loop_scope="session")

REQUESTS = int(os.environ.get("MERITORDER_RECONCILED_REQUESTS", "10000"))
AT_ONCE = 64
SEED = 20_26

LONG = 30
"""Tokens of prompt above which `dear` is dearer."""

PRICES = {
    # US dollars per million tokens: input, cached input, output
    "cheap": ("0.15", "0.075", "0.6"),
    "middle": ("1.25", "0.125", "10"),
    "dear": ("3", "0.3", "15"),
    "flaky": ("0.07", "0.07", "0.41"),
    "brittle": ("0.1", "0.1", "0.2"),
    "busy": ("0.05", "0.05", "0.4"),
    "shaky": ("0.9", "0.9", "1.7"),
    "silent": ("2.22", "2.22", "3.33"),
    "vectors": ("0.13", "0.13", "0"),
    "dead": ("1", "1", "1"),
    "house": ("0", "0", "0"),
}
DEAR_ABOVE_LONG = ("6", "0.6", "22.5")

DAILY_BUDGET = Decimal(1000)


def priced(name: str, **more: Any) -> dict[str, Any]:
    input, cached, output = (Decimal(rate) for rate in PRICES[name])
    return provider(
        name, float(input), float(output), price={"cachedInput": float(cached)} | more.pop("price", {}), **more
    )


tier = dict(zip(("input", "cachedInput", "output"), map(float, DEAR_ABOVE_LONG), strict=True))
MANIFESTS = [
    *(priced(name) for name in ("cheap", "middle", "flaky", "brittle", "busy", "shaky", "silent", "dead")),
    priced("dear", price={"tiers": [{"aboveInputTokens": LONG, **tier}]}),
    priced("vectors", endpoints=["embeddings"]),
    model("house"),
    route("assistant", "cheap/chat", "middle/chat"),
    route("premium", "dear/chat", "middle/chat", objective={"qualityWorth": 0}),
    route("risky", "flaky/chat", "dear/chat"),
    route("fragile", "brittle/chat", "cheap/chat"),
    route("crowded", "busy/chat", "middle/chat"),
    route("ours-first", "house", "cheap/chat"),
    team("plain"),
    team("budgeted", budgets=[{"period": "daily", "amount": float(DAILY_BUDGET)}]),
    team("measured", limits={"rpm": 1_000_000, "tpm": 1_000_000_000, "concurrency": 1000}),
    team("poor", budgets=[{"period": "total", "amount": 0.000001}]),
    team("throttled", limits={"rpm": 10}),
]

TOKENS = 6
"""Of an answer that nothing cuts short."""

FATES = {
    # What a request's `user` ends with, and what then happens to it at the upstream.
    "mute": Behaviour(tokens=TOKENS, usage=None),
    "cached": Behaviour(
        tokens=TOKENS,
        usage={"prompt_tokens": 2048, "completion_tokens": 77, "prompt_tokens_details": {"cached_tokens": 1920}},
    ),
    "reject": Behaviour(status=400, error_message="no"),
    "cut": Behaviour(tokens=TOKENS, fail_after_chunks=4, fail_mode="close"),
    "error": Behaviour(tokens=TOKENS, fail_after_chunks=3, fail_mode="error_event"),
    "garbage": Behaviour(tokens=TOKENS, fail_after_chunks=5, fail_mode="malformed"),
    "leave": Behaviour(tokens=TOKENS, fail_after_chunks=4, fail_mode="stall"),
    "hang": Behaviour(hang=True),
}
SCRIPT = Script(
    rules=[
        Rule(model="sim-dead", behaviour=Behaviour(refuse_connection=True)),
        Rule(model="sim-flaky", user="*:fault", behaviour=Behaviour(status=500)),
        Rule(model="sim-flaky", user="*:early", behaviour=Behaviour(fail_after_chunks=1)),
        Rule(model="sim-brittle", user="*:fault", behaviour=Behaviour(refuse_connection=True)),
        Rule(model="sim-busy", behaviour=Behaviour(tokens=TOKENS, ttft_ms=30, concurrency=1)),
        *(Rule(user=f"*:{fate}", behaviour=behaviour) for fate, behaviour in FATES.items()),
        Rule(behaviour=Behaviour(tokens=TOKENS)),
    ]
)


@dataclass(frozen=True)
class Kind:
    """A kind of request, and how many of a thousand are of it."""

    share: int
    path: str
    model: str
    fate: str = "well"
    fields: dict[str, Any] = field(default_factory=dict)
    team: str | None = None


CHAT, COMPLETIONS, EMBEDDINGS = "chat/completions", "completions", "embeddings"
STREAM, ASKING = {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}
KINDS = [
    Kind(175, CHAT, "assistant"),
    Kind(100, CHAT, "assistant", fields=STREAM),
    Kind(60, CHAT, "assistant", fields=ASKING),
    Kind(60, CHAT, "premium"),
    Kind(40, CHAT, "premium", fields=ASKING),
    Kind(70, COMPLETIONS, "assistant"),
    Kind(40, COMPLETIONS, "middle/chat", fields=STREAM),
    Kind(70, EMBEDDINGS, "vectors/chat"),
    Kind(30, CHAT, "assistant", fields={"n": 2}),
    Kind(20, CHAT, "middle/chat", fields={"n": 3, **STREAM}),
    Kind(25, CHAT, "middle/chat", "cached"),
    Kind(15, CHAT, "middle/chat", "cached", ASKING),
    Kind(30, CHAT, "assistant", "mute", STREAM),
    Kind(10, COMPLETIONS, "dear/chat", "mute", STREAM),
    Kind(10, EMBEDDINGS, "vectors/chat", "mute"),
    Kind(20, CHAT, "ours-first"),
    Kind(15, CHAT, "ours-first", "mute", STREAM),
    Kind(20, CHAT, "risky", "fault"),
    Kind(10, CHAT, "risky", "fault", ASKING),
    Kind(80, CHAT, "risky"),
    Kind(10, CHAT, "risky", "early", STREAM),
    Kind(10, CHAT, "fragile", "fault"),
    Kind(20, CHAT, "fragile", fields=STREAM),
    Kind(30, CHAT, "crowded"),
    Kind(5, CHAT, "dead/chat"),
    Kind(15, CHAT, "shaky/chat", "cut", STREAM),
    Kind(10, COMPLETIONS, "shaky/chat", "cut", ASKING),
    Kind(15, CHAT, "shaky/chat", "error", ASKING),
    Kind(10, CHAT, "shaky/chat", "garbage", STREAM),
    Kind(40, CHAT, "premium", "leave", STREAM),
    Kind(20, CHAT, "silent/chat", "hang"),
    Kind(10, CHAT, "silent/chat", "hang", STREAM),
    Kind(15, CHAT, "assistant", "reject"),
    Kind(10, CHAT, "no-such-model"),
    Kind(10, CHAT, "assistant", team="poor"),
    Kind(10, CHAT, "assistant", team="throttled"),
]
TEAMS = ("plain", "budgeted", "measured")
KEYS_OF_A_TEAM = 3

NOT_LET_IN = {"model_not_found", "rate_limit_exceeded"}
"""Errors of requests that have no record."""


@dataclass
class Sent:
    """A request, and what its client saw of it."""

    id: str
    kind: Kind
    team: str
    key: str
    body: dict[str, Any]
    status: int = 0
    error: str | None = None
    message: str = ""
    told: Decimal | None = None
    task: asyncio.Task[None] | None = None


def made(generator: random.Random, keys: dict[str, list[str]]) -> Iterator[Sent]:
    """All requests, in an order that has nothing to do with their kinds."""
    kinds = [kind for kind in KINDS for _ in range(kind.share * REQUESTS // sum(each.share for each in KINDS))]
    kinds += [KINDS[0]] * (REQUESTS - len(kinds))
    generator.shuffle(kinds)
    for number, kind in enumerate(kinds):
        payer = kind.team or generator.choice(TEAMS)
        text = words(generator.randint(1, 2 * LONG))
        body = {"model": kind.model, "user": f"r-{number}:{kind.fate}", **kind.fields}
        match kind.path:
            case "chat/completions":
                body["messages"] = [{"role": "user", "content": text}]
            case "completions":
                body |= {"prompt": text, "max_tokens": generator.randint(1 if kind.fate == "well" else TOKENS, TOKENS)}
            case _:
                body |= {"input": [text, words(3)], "dimensions": 4}
        yield Sent(f"r-{number}", kind, payer, generator.choice(keys[payer]), body)


@pytest_asyncio.fixture(loop_scope="session")
async def platform_(tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(tmp_path, *MANIFESTS, keep_requests=2 * REQUESTS) as made:
        made.upstream.set_script(SCRIPT)
        yield made


@pytest.mark.timeout(60 + REQUESTS // 20)
async def test_the_ledger_and_the_upstream_agree(platform_: Platform) -> None:
    clients = {team: [platform_.client(team)] for team in (*TEAMS, "poor", "throttled")}
    for name in TEAMS:
        clients[name] += [await platform_.new_client(name) for _ in range(KEYS_OF_A_TEAM - 1)]
    by_key = {f"{name}-{number}": one for name, them in clients.items() for number, one in enumerate(them)}
    keys = {name: [key for key in by_key if key.rpartition("-")[0] == name] for name in clients}
    all_sent = list(made(random.Random(SEED), keys))
    since = time.time()
    try:
        await send_all(all_sent, by_key, platform_)
    finally:
        for client in by_key.values():
            await client.close()

    let_in = [sent for sent in all_sent if sent.error not in NOT_LET_IN]
    await platform_.upstream.wait_until(lambda received: all(one.outcome for one in received), 30.0)
    await eventually(lambda: stored(platform_, len(let_in)), 60.0)
    received = [one for one in platform_.upstream.requests if one.is_charged]
    print(
        f"\n{len(all_sent)} requests, {len(let_in)} let in, {len(platform_.upstream.requests)} attempts at upstreams:"
    )
    print(assert_all_happened(platform_.upstream.requests, len(all_sent)))

    with platform_.ingress.database() as engine:
        with reading(engine) as connection:
            assert_one_record_for_each(connection, let_in)
            owed = sums(received, id_of)
            charged = charged_for_each(connection)
            assert {
                one: (charged.get(one), owed.get(one)) for one in owed | charged if charged.get(one) != owed.get(one)
            } == {}
            assert connection.scalar(select(exact_sum(charges.c.cost_usd))) == total(received)[-1]
        payers = {sent.body["user"]: sent for sent in all_sent}
        for by, label_of in {
            By.BACKEND: lambda one: backend_of(one),
            By.TEAM: lambda one: payers[one.body["user"]].team,
            By.MODEL: lambda one: payers[one.body["user"]].kind.model,
        }.items():
            report = usage_report(engine, by, since - 1, time.time() + 1)
            assert {row.label: sums_of(row) for row in report.rows if any(sums_of(row))} == sums(received, label_of)
        assert_keys_agree(usage_report(engine, By.KEY, since - 1, time.time() + 1).rows, received, payers)
        # What the clients were told, and what the budget counts, are the same money.
        allowance = Allowance("team:budgeted", budgets=(Budget(Period.DAILY, DAILY_BUDGET),))
        [state] = budget_states(engine, [allowance], time.time())
        paid = [one for one in received if payers[one.body["user"]].team == "budgeted"]
        assert state.spent == sum(map(price_of, paid), Fraction(0))
    told = {sent.body["user"]: sent.told for sent in all_sent if sent.told is not None}
    assert len(told) > REQUESTS // 2
    per_request = grouped(received, lambda one: one.body["user"])
    for user, cost in told.items():
        assert sum(map(price_of, per_request[user]), Fraction(0)) == cost, user


def assert_all_happened(received: Iterable[ReceivedRequest], count: int) -> Counter[str]:
    """A test of nothing but good answers would prove little. How often there was what."""
    happened: Counter[str] = Counter()
    for one in received:
        fate = one.body["user"].rpartition(":")[2]
        refused = one.outcome == "failed" and one.status is None
        broke_off = one.outcome == "failed" and one.status == 200
        happened["refused connections"] += refused
        happened[f"{one.status} from {one.endpoint}"] += not refused
        happened["streams that broke after a token"] += broke_off and one.completion_tokens > 0
        happened["streams that broke before one"] += broke_off and not one.completion_tokens
        happened["clients that left in mid-stream"] += fate == "leave" and one.outcome == "client_disconnected"
        happened["clients that left before"] += fate == "hang" and one.outcome == "client_disconnected"
        happened["answers without usage"] += fate == "mute"
        happened["answers from a cache"] += one.cached_tokens > 0
    least = {f"200 from {endpoint}": count // 20 for endpoint in ("chat", "completions", "embeddings")}
    least |= {
        "400 from chat": count // 100, "429 from chat": 1, "500 from chat": 1,
        "refused connections": 1, "streams that broke after a token": count // 50,
        "streams that broke before one": 1, "clients that left in mid-stream": count // 30,
        "clients that left before": count // 50, "answers without usage": count // 20,
        "answers from a cache": count // 30,
    }  # fmt: skip
    assert {what: happened[what] for what, wanted in least.items() if happened[what] < wanted} == {}
    return happened


async def send_all(all_sent: list[Sent], clients: dict[str, aiohttp.ClientSession], platform: Platform) -> None:
    """Send them, a few at once. Those that will hang wait beside the others until their clients leave."""
    waiting = iter(all_sent)
    hanging: list[Sent] = []

    async def work() -> None:
        for sent in waiting:
            if sent.kind.fate == "hang":
                sent.task = asyncio.create_task(send(sent, clients[sent.key]))
                hanging.append(sent)
            else:
                await send(sent, clients[sent.key])

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    users = {sent.body["user"] for sent in hanging}

    def accepted(received: Iterable[ReceivedRequest]) -> bool:
        return len(users) == sum(1 for one in received if one.prompt_tokens and one.body["user"] in users)

    await platform.upstream.wait_until(accepted, 30.0)
    for sent in hanging:
        assert sent.task is not None
        sent.task.cancel()
    await asyncio.gather(*(sent.task for sent in hanging if sent.task), return_exceptions=True)


async def send(sent: Sent, http: aiohttp.ClientSession) -> None:
    async with http.post(f"/v1/{sent.kind.path}", json=sent.body, headers={"x-request-id": sent.id}) as response:
        sent.status = response.status
        if sent.kind.fate == "leave":
            seen = b""
            while seen.count(b'"content":"') < 1 + 3:  # the role, and three tokens, after which the upstream stalls
                seen += await response.content.readany()
            response.close()
            return
        body = await response.read()
    if response.status != 200:
        sent.error, sent.message = (json.loads(body)["error"][name] for name in ("code", "message"))
    elif cost := response.headers.get("x-meritorder-cost-usd"):
        sent.told = Decimal(cost)
    elif b'"meritorder"' in body:
        [event] = [json.loads(line[6:]) for line in body.split(b"\n\n") if b'"meritorder"' in line]
        sent.told = Decimal(event["usage"]["meritorder"]["cost_usd"])


def backend_of(one: ReceivedRequest) -> str:
    assert one.model is not None
    return "house" if one.model == "house" else f"{one.model.removeprefix('sim-')}/chat"


def price_of(one: ReceivedRequest) -> Fraction:
    """What the upstream wants for it, in US dollars."""
    name = backend_of(one).partition("/")[0]
    rates = DEAR_ABOVE_LONG if name == "dear" and one.prompt_tokens > LONG else PRICES[name]
    input, cached, output = map(Fraction, rates)
    fresh = one.prompt_tokens - one.cached_tokens
    return (fresh * input + one.cached_tokens * cached + one.completion_tokens * output) / 10**6


Sums = tuple[int, int, int, Fraction]
"""Tokens of prompts, cached ones, tokens of answers, and US dollars."""


def sums_of(row: Row) -> Sums:
    return row.input_tokens, row.cached_input_tokens, row.output_tokens, Fraction(row.marginal_usd)


def total(received: Iterable[ReceivedRequest]) -> Sums:
    them = list(received)
    return (
        sum(one.prompt_tokens for one in them),
        sum(one.cached_tokens for one in them),
        sum(one.completion_tokens for one in them),
        sum(map(price_of, them), Fraction(0)),
    )


def grouped(received: Iterable[ReceivedRequest], label_of: Any) -> dict[str, list[ReceivedRequest]]:
    groups: defaultdict[str, list[ReceivedRequest]] = defaultdict(list)
    for one in received:
        groups[label_of(one)].append(one)
    return groups


def sums(received: Iterable[ReceivedRequest], label_of: Any) -> dict[str, Sums]:
    return {label: total(them) for label, them in grouped(received, label_of).items()}


def assert_keys_agree(rows: Iterable[Row], received: list[ReceivedRequest], payers: dict[str, Sent]) -> None:
    """The upstream does not know the ids of keys, but what each used."""
    by_key = sums(received, lambda one: payers[one.body["user"]].key)
    assert len(by_key) >= len(TEAMS) * KEYS_OF_A_TEAM
    assert sorted(sums_of(row) for row in rows if any(sums_of(row))) == sorted(by_key.values())


def assert_one_record_for_each(connection: Connection, let_in: list[Sent]) -> None:
    recorded = connection.execute(select(requests.c.request_id, requests.c.outcome, requests.c.status)).all()
    assert Counter(row.request_id for row in recorded) == Counter(sent.id for sent in let_in)
    outcomes = {row.request_id: row.outcome for row in recorded}
    wanted = {"leave": Outcome.DISCONNECTED, "hang": Outcome.DISCONNECTED, "reject": Outcome.REJECTED}
    wanted |= dict.fromkeys(("cut", "error", "garbage"), Outcome.FAILED)
    for sent in let_in:
        expected = wanted.get(sent.kind.fate, Outcome.COMPLETED)
        if sent.kind.model == "dead/chat":
            expected = Outcome.FAILED
        elif sent.team == "poor":
            expected = Outcome.REFUSED
        assert outcomes[sent.id] == expected, (sent.kind, sent.message)


def id_of(one: ReceivedRequest) -> str:
    return str(one.body["user"].partition(":")[0])


def charged_for_each(connection: Connection) -> dict[str, Sums]:
    """By the client's id of the request."""
    made: defaultdict[str, list[Any]] = defaultdict(list)
    query = select(requests.c.request_id, charges).join_from(charges, requests, requests.c.id == charges.c.request)
    for row in connection.execute(query):
        made[row.request_id].append(row)
    return {
        request_id: (
            sum(row.input_tokens for row in rows),
            sum(row.cached_input_tokens for row in rows),
            sum(row.output_tokens for row in rows),
            sum((Fraction(row.cost_usd) for row in rows), Fraction(0)),
        )
        for request_id, rows in made.items()
    }


async def stored(platform: Platform, count: int) -> bool:
    with platform.ingress.database() as engine, reading(engine) as connection:
        return bool(connection.scalar(select(func.count()).select_from(requests)) == count)
