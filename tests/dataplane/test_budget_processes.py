"""Several real processes, one PostgreSQL: a budget is neither overspent nor left over, a rate is kept, and what a
killed process held comes back.

Each process is what an ingress is to the ledger: `Admission`, its agent, and a `UsageLog`. It sends requests as fast as
it can, several at once, until it is refused for too long.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from meritorder.core.catalog import Team
from meritorder.core.errors import BudgetExceeded, LedgerUnavailable, LimitExceeded
from meritorder.core.limits import Allowance, Budget, Limits, Period
from meritorder.core.request import Caller
from meritorder.core.usage import Charge, Outcome, Usage, UsageRecord
from meritorder.ingress.admission import Admission
from meritorder.ingress.leasing import LeaseAgent, Pace, new_holder
from meritorder.ledger.database import exact_sum, open_database, reading
from meritorder.ledger.schema import charges, spend
from meritorder.ledger.usage import UsageLog

D = Decimal
BUDGET = D(1)
LEASE_SECONDS = 2.0
AT_ONCE = 8
EXCESS = D("0.001")
"""What a request may cost beyond what it reserves, in these tests: their provider is a little dearer than it says."""


# --- The process ---


class Worker:
    def __init__(self, url: str, spool: Path, limits: Limits, budgets: tuple[Budget, ...], ahead: float) -> None:
        self.engine = open_database(url)
        holder = new_holder()
        self.usage = UsageLog(self.engine, spool, holder)
        self.agent = LeaseAgent(
            self.engine,
            holder,
            Pace(lease=LEASE_SECONDS, interval=0.2),
            epoch=lambda: time.time() + ahead,
            all_stored=lambda: self.usage.waiting == 0,
        )
        self.admission = Admission(self.agent)
        self.caller = Caller(Team("demo"), "key_1", (Allowance("team:demo", limits, budgets),))
        self.let_in = 0
        self.refused = 0
        self.over_reserved = D(0)
        self.random = random.Random(os.getpid())

    async def run(self, patience: float) -> dict[str, Any]:
        """Send requests until all of them have been refused for `patience` seconds."""
        async with self.agent:
            await asyncio.gather(*(self.client(patience) for _ in range(AT_ONCE)))
        self.usage.close()
        return {"let_in": self.let_in, "over_reserved": str(self.over_reserved)}

    async def client(self, patience: float) -> None:
        last_let_in = time.monotonic()
        while time.monotonic() < last_let_in + patience:
            try:
                await self.request()
                last_let_in = time.monotonic()
            except (BudgetExceeded, LimitExceeded, LedgerUnavailable):
                await asyncio.sleep(0.02)

    async def request(self) -> None:
        bound = D(self.random.randint(1, 50)) / 10_000  # half a cent at most
        ticket = await self.admission.admit(self.caller, 100)
        cost = D(0)
        try:
            headroom = await ticket.headroom(bound)
            if headroom is not None and headroom < bound:
                raise ticket.refusal(bound)
            ticket.reserve(bound)
            await asyncio.sleep(self.random.random() * 0.04)  # the provider answers
            cost = bound * self.random.randint(1, 100) / 100 if self.random.random() < 0.95 else bound + EXCESS
            self.over_reserved += max(D(0), cost - bound)
            self.let_in += 1
        finally:
            ticket.settle(cost, 50)
            if cost:
                self.usage.end(record(self.random.randbytes(8).hex(), cost))


def record(record_id: str, cost: Decimal) -> UsageRecord:
    return UsageRecord(
        id=record_id, request_id=record_id, team="demo", key_id="key_1", route="r", endpoint="chat/completions",
        backend="hosted/chat", tier="hosted", attempts=1, outcome=Outcome.COMPLETED, status=200,
        charges=(Charge("hosted/chat", "hosted", Usage(1, 1), cost),), started_at=time.time(),
        time_to_first_token=None, duration=0.1,
    )  # fmt: skip


def main(url: str, spool: str, rpm: str, budget: str, patience: str, ahead: str) -> None:
    limits = Limits(requests_per_minute=int(rpm) if rpm else None)
    budgets = (Budget(Period.TOTAL, D(budget)),) if budget else ()
    worker = Worker(url, Path(spool), limits, budgets, float(ahead))
    print("ready", flush=True)
    sys.stdin.readline()  # all begin at once
    print(json.dumps(asyncio.run(worker.run(float(patience)))), flush=True)


# --- The tests ---


class Workers:
    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def run(self, count: int, *, rpm: str = "", budget: str = "", patience: float = 1.0) -> None:
        ahead = 60 - time.time() % 60  # so that a minute begins now, and does not end before they do
        for _ in range(count):
            spool = self.folder / f"spool{len(self.processes)}"
            command = [sys.executable, __file__, self.url, str(spool), rpm, budget, str(patience), str(ahead)]
            self.processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def results(self) -> list[dict[str, Any]]:
        """What those that were not killed say at their end."""
        made = []
        for process in self.processes:
            output, _ = process.communicate(timeout=60)
            if process.returncode != -signal.SIGKILL:
                assert process.returncode == 0
                made.append(json.loads(output.splitlines()[-1]))
        return made

    def kill_all(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def workers(database_url: str, tmp_path: Path) -> Any:
    made = Workers(database_url, tmp_path)
    yield made
    made.kill_all()


def spent(url: str) -> Decimal:
    """By the budget's count, which has to be that of the records."""
    engine = open_database(url)
    try:
        with reading(engine) as connection:
            counted = connection.scalar(
                select(spend.c.usd).where(spend.c.scope == "team:demo", spend.c.period == Period.TOTAL.value)
            ) or D(0)
            recorded = connection.scalar(select(exact_sum(charges.c.cost_usd))) or D(0)
    finally:
        engine.dispose()
    assert counted == recorded
    return counted


def test_a_dollar_is_neither_overspent_nor_left_over(workers: Workers, database_url: str) -> None:
    workers.run(4, budget=str(BUDGET))
    results = workers.results()
    over_reserved = sum(D(result["over_reserved"]) for result in results)
    total = spent(database_url)
    assert D("0.95") * BUDGET <= total <= BUDGET + over_reserved
    # Whoever uses more than reserved can do so in the requests that are in flight when the last money goes.
    assert total <= BUDGET + len(results) * AT_ONCE * EXCESS
    assert sum(result["let_in"] for result in results) > 100


def test_a_rate_is_never_exceeded_by_all_processes_together(workers: Workers) -> None:
    workers.run(3, rpm="200", patience=0.5)
    results = workers.results()
    assert 190 <= sum(result["let_in"] for result in results) <= 200


def test_what_a_killed_process_held_comes_back(workers: Workers, database_url: str) -> None:
    workers.run(3, budget=str(BUDGET), patience=LEASE_SECONDS + 0.5)
    killed = workers.processes[0]
    wait_until(lambda: spent(database_url) > D("0.2"))
    killed.kill()
    over_reserved = sum(D(result["over_reserved"]) for result in workers.results())
    # What it had spent and not yet stored is in its spool, and is counted when that is found.
    assert D("0.95") * BUDGET <= spent(database_url) <= BUDGET + over_reserved + AT_ONCE * EXCESS


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
