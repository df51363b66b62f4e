"""Leases under any interleaving: nothing is spent twice, forgotten, or negative.

The simulation has several processes and one database. The processes reserve, settle, lose their connection and die; the
database does what `ledger.leases` does, with the same decision, and stores usage as `ledger.records` does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meritorder.admission.lease import Lease, Places, Purse
from meritorder.admission.sharing import Claim, Outcome, Row, share

D = Decimal
SECONDS = 10.0
SAFE_SECONDS = 8.0
LIMIT = D(100)

HOLDERS = ("a", "b", "c")


@dataclass
class Exchange:
    claim: Claim
    began: float
    outcome: Outcome | None = None  # of the database, which may be committed

    @property
    def stamp(self) -> float:
        return self.began + SECONDS


@dataclass(eq=False)
class Process:
    """`settled` is what is not stored yet. `uncovered`: it used more than reserved, or outlived its lease."""

    lease: Lease
    settled: list[Decimal] = field(default_factory=list)
    in_flight: int = 0
    exchange: Exchange | None = None
    uncovered: bool = False

    @property
    def in_use(self) -> Decimal:
        return self.lease.reserved + sum(self.settled, D(0))


@dataclass
class Stored:
    amount: Decimal
    stamp: float


@dataclass
class Reservation:
    process: Process
    amount: Decimal


class SharedBudget:
    """`beyond` is what was used beyond reservations; `late` what was in use when a lease was void."""

    def __init__(self, random: Random, lease: Callable[[], Lease]) -> None:
        self.random = random
        self.new_lease = lease
        self.now = 1000.0
        self.processes = {name: Process(lease()) for name in HOLDERS}
        self.reservations: list[Reservation] = []
        self.leases: dict[str, Stored] = {}
        self.spent = D(0)
        self.beyond = D(0)
        self.late = D(0)

    def run(self, steps: int, trouble: bool) -> None:
        """Do `steps` things at random; with `trouble`, also what breaks rules and connections."""
        often = [self.reserve, self.settle, self.begin, self.transact, self.finish, self.store_usage]
        seldom = [self.die, self.time_passes] if trouble else []
        self.trouble = trouble
        for step in self.random.choices(often + seldom, [8, 8, 4, 4, 4, 2, *(1 for _ in seldom)], k=steps):
            step(self.random.choice(HOLDERS))
            self.check()

    # --- What processes do ---

    def reserve(self, name: str) -> None:
        process = self.processes[name]
        available = process.lease.available(self.now)
        amount = available if self.random.random() < 0.3 else D(self.random.randint(1, 10)) / 100 * LIMIT
        amount = amount.quantize(process.lease.quantum)
        if 0 < amount <= available:
            process.lease.reserve(amount, self.now)
            self.reservations.append(Reservation(process, amount))

    def settle(self, _name: str) -> None:
        if not self.reservations:
            return
        done = self.reservations.pop(self.random.randrange(len(self.reservations)))
        process = done.process
        if process not in self.processes.values():
            return  # it died
        used = D(0) if isinstance(process.lease, Places) else self.part() * done.amount
        process.lease.settle(done.amount, used)
        process.settled.append(used)
        process.uncovered |= used > done.amount
        self.beyond += max(D(0), used - done.amount)

    def part(self) -> Decimal:
        return D(self.random.choice(["0", "0.5", "1", "1", *(["1.5"] if self.trouble else [])]))

    def die(self, name: str) -> None:
        """The process is gone. What it has settled is found and stored, but its lease lasts until it expires."""
        dead = self.processes[name]
        self.late += sum(dead.settled, D(0))
        self.spent += sum(dead.settled, D(0))
        self.processes[name] = Process(self.new_lease())
        if name in self.leases:
            self.leases[f"dead at {self.now}"] = self.leases.pop(name)
        self.now += 0.001

    def time_passes(self, _name: str) -> None:
        before, self.now = self.now, self.now + self.random.choice([0.01, 0.5, 0.5, 3.0, 9.0])
        for name, process in self.processes.items():
            lease = self.leases.get(name)
            if lease is not None and before < lease.stamp - 2 <= self.now:
                self.late += process.in_use
                process.uncovered = True

    # --- Exchanges, whose beginning, transaction and end are moments of their own ---

    def begin(self, name: str) -> None:
        process = self.processes[name]
        if process.exchange is not None:
            return
        waiting = D(self.random.choice(["0", "0.02", "0.2", "1.5"])) * LIMIT
        stored = not process.settled and self.random.random() < 0.5
        if waiting:
            with process.lease.waiting(waiting):
                claim = process.lease.claim(self.now, all_stored=stored)
        else:
            claim = process.lease.claim(self.now, all_stored=stored)
        process.exchange = Exchange(claim, self.now) if claim else None
        self.now += 0.001  # no two have the same stamp

    def transact(self, name: str) -> None:
        exchange = self.processes[name].exchange
        if exchange is None or exchange.outcome is not None:
            return
        own = self.leases.get(name)
        row = Row(own.amount, own.stamp, own.stamp - 2 > self.now) if own else None
        others = sum((one.amount for key, one in self.leases.items() if key != name and one.stamp > self.now), D(0))
        exchange.outcome = share(exchange.claim, row, LIMIT - self.spent, others)
        if self.random.random() < 0.7:
            self.leases[name] = Stored(exchange.outcome.amount, exchange.stamp)

    def finish(self, name: str) -> None:
        """The process hears of its exchange, or of an error that leaves open whether it was committed."""
        process = self.processes[name]
        exchange, process.exchange = process.exchange, None
        if exchange is None:
            return
        committed = name in self.leases and self.leases[name].stamp == exchange.stamp
        if exchange.outcome is None:
            process.lease.failed()
        elif committed and self.random.random() < 0.7:
            process.lease.take(exchange.outcome, exchange.stamp, exchange.began + SAFE_SECONDS)
            process.uncovered &= process.in_use > self.leases[name].amount
        else:
            process.lease.unsure(exchange.outcome, exchange.stamp)

    def store_usage(self, name: str) -> None:
        process = self.processes[name]
        used = sum(process.settled, D(0))
        process.settled.clear()
        self.spent += used
        if name in self.leases:
            self.leases[name].amount = max(D(0), self.leases[name].amount - used)

    # --- What holds ---

    def check(self) -> None:
        self.what_is_spent_and_what_is_leased_are_within_the_limit()
        self.what_a_process_uses_and_may_use_is_covered_by_its_lease()
        self.every_reservation_is_released_once()

    def what_is_spent_and_what_is_leased_are_within_the_limit(self) -> None:
        leased = sum((one.amount for one in self.leases.values() if one.stamp > self.now), D(0))
        assert self.spent + leased <= LIMIT + self.beyond + self.late

    def what_a_process_uses_and_may_use_is_covered_by_its_lease(self) -> None:
        for name, process in self.processes.items():
            available = max(D(0), process.lease.available(self.now))
            if available:
                assert self.leases[name].stamp - 2 > self.now
            if not process.uncovered:
                leased = self.leases[name].amount if name in self.leases else D(0)
                assert process.in_use + available <= leased

    def every_reservation_is_released_once(self) -> None:
        for process in self.processes.values():
            open_ones = (one.amount for one in self.reservations if one.process is process)
            assert process.lease.reserved == sum(open_ones, D(0))


@pytest.mark.parametrize("trouble", [False, True], ids=["as it should be", "with deaths, outages and excess"])
@pytest.mark.parametrize("lease", [Purse, Places])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_limit_holds_whatever_comes_between(lease: Callable[[], Lease], trouble: bool, seed: int) -> None:
    SharedBudget(Random(seed), lease).run(300, trouble)


def test_all_of_a_limit_can_be_used() -> None:
    """Several processes, each of them busy: what is left over is less than a request may cost."""
    simulation = SharedBudget(Random(1), Purse)
    for _ in range(200):
        for name in HOLDERS:
            process = simulation.processes[name]
            if process.lease.available(simulation.now) >= LIMIT / 50:
                process.lease.reserve(LIMIT / 50, simulation.now)
                process.lease.settle(LIMIT / 50, LIMIT / 200)
                process.settled.append(LIMIT / 200)
                simulation.store_usage(name)
                continue
            with process.lease.waiting(LIMIT / 50):
                claim = process.lease.claim(simulation.now)
            assert claim is not None
            process.exchange = Exchange(claim, simulation.now)
            simulation.transact(name)
            simulation.finish(name)
            simulation.now += 0.02
    assert LIMIT * 49 / 50 < simulation.spent <= LIMIT
