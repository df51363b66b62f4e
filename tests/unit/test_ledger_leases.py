"""Leases in both databases: processes share a limit, usage lowers it once, and what is lost comes back."""

import threading
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event, select
from sqlalchemy.exc import OperationalError

from meritorder.admission.account import Account, Moment
from meritorder.admission.exchange import Answer
from meritorder.core.limits import Allowance, Budget, Limits, Period
from meritorder.core.usage import Charge, Outcome, Usage, UsageRecord
from meritorder.ledger.database import open_database, reading
from meritorder.ledger.leases import ExchangeFailed, exchange, sweep
from meritorder.ledger.records import store
from meritorder.ledger.schema import leases, rate_grants

D = Decimal
EPOCH = datetime(2027, 3, 15, 13, 45, 30, tzinfo=UTC).timestamp()
DOLLAR = Allowance("team:demo", budgets=(Budget(Period.DAILY, D(1)),))


class Process:
    """What an ingress process does with the database, without its event loop. Time is what the test says."""

    def __init__(self, engine: Engine, holder: str, allowance: Allowance = DOLLAR) -> None:
        self.engine = engine
        self.holder = holder
        self.account = Account(allowance)
        self.records = 0

    def exchange(self, epoch: float = EPOCH, *, money: str | None = None, reclaim: bool = True) -> Answer | None:
        """One exchange, in which a request waits for `money`."""
        at = Moment(epoch, epoch)
        if money is None:
            demand = self.account.demand(at)
        else:
            with self.account.money.waiting(D(money)):
                demand = self.account.demand(at)
        if demand is None:
            return None
        try:
            answers = exchange(self.engine, self.holder, [demand], epoch, reclaim=reclaim)
        except ExchangeFailed as failed:
            for answer in (failed.answers or {}).values():
                self.account.unsure(answer, epoch + 10)
            raise
        answer = answers[demand.allowance.scope]
        self.account.take(demand, answer, epoch + 10, epoch + 8, epoch)
        return answer

    def available(self, epoch: float = EPOCH) -> Decimal:
        return self.account.money.available(epoch)

    def spend(self, cost: str, *, stored: bool = True, epoch: float = EPOCH) -> None:
        """A request that costs what it has reserved."""
        self.account.money.reserve(D(cost), epoch)
        self.account.money.settle(D(cost), D(cost))
        if stored:
            self.store(cost, epoch)

    def store(self, cost: str, epoch: float = EPOCH) -> None:
        self.records += 1
        store(self.engine, self.holder, [record(f"{self.holder}-{self.records}", cost, epoch)])


def record(record_id: str, cost: str, epoch: float) -> UsageRecord:
    return UsageRecord(
        id=record_id, request_id=record_id, team="demo", key_id="key_1", route="r", endpoint="chat/completions",
        backend="hosted/chat", tier="hosted", attempts=1, outcome=Outcome.COMPLETED, status=200,
        charges=(Charge("hosted/chat", "hosted", Usage(1, 1), D(cost)),), started_at=epoch, time_to_first_token=None,
        duration=1.0,
    )  # fmt: skip


def leased(engine: Engine) -> dict[str, Decimal]:
    with reading(engine) as connection:
        return {row.holder: row.amount for row in connection.execute(select(leases).where(leases.c.resource == "usd"))}


# --- Money ---


def test_a_request_that_waits_gets_its_money_and_no_two_get_the_same(database: Engine) -> None:
    one, other = Process(database, "one"), Process(database, "other")
    one.exchange(money="0.7")
    other.exchange(money="0.2")
    other.exchange(money="0.8")
    assert (one.available(), other.available()) == (D("0.7"), D("0.3"))
    assert leased(database) == {"one": D("0.7"), "other": D("0.3")}


def test_what_is_settled_is_deducted_once_before_and_after_its_record_is_stored(database: Engine) -> None:
    process = Process(database, "one")
    process.exchange(money="0.6")
    process.spend("0.1", stored=False)
    assert process.available() == D("0.5")
    process.exchange()
    kept = process.available()
    assert process.account.unspent(Moment(EPOCH, EPOCH)) == D("0.9")
    assert leased(database) == {"one": kept + D("0.1")}
    process.store("0.1")
    process.exchange()
    assert process.available() == kept
    assert process.account.unspent(Moment(EPOCH, EPOCH)) == D("0.9")
    assert leased(database) == {"one": kept}


def test_a_record_that_is_stored_during_an_exchange_is_counted_once(database: Engine) -> None:
    process = Process(database, "one")
    process.exchange(money="0.6")
    process.spend("0.1", stored=False)
    demand = process.account.demand(Moment(EPOCH, EPOCH))
    assert demand is not None
    process.store("0.1")  # after the process has said what it knows, and before the database answers
    answers = exchange(database, "one", [demand], EPOCH + 1)
    process.account.take(demand, answers["team:demo"], EPOCH + 11, EPOCH + 9, EPOCH)
    assert process.available() == leased(database)["one"] > 0


def test_what_is_idle_is_given_back(database: Engine) -> None:
    process = Process(database, "one")
    process.exchange(money="0.4")
    process.spend("0.1")
    process.exchange(EPOCH + 3)
    assert leased(database) == {"one": D(0)}
    assert process.exchange(EPOCH + 4) is None, "there is nothing more to say"


def test_all_budgets_of_a_payer_bound_a_lease(database: Engine) -> None:
    budgets = (Budget(Period.DAILY, D(5)), Budget(Period.MONTHLY, D(1)), Budget(Period.TOTAL, D(3)))
    process = Process(database, "one", replace(DOLLAR, budgets=budgets))
    process.store("0.9", EPOCH - 86400)  # of this month, and of yesterday
    answer = process.exchange(money="2")
    assert process.available() == D("0.1")
    assert answer is not None
    assert [budget.unspent for budget in answer.budgets] == [D(5), D("0.1"), D("2.1")]


def test_a_new_period_brings_new_money(database: Engine) -> None:
    process, midnight = Process(database, "one"), EPOCH // 86400 * 86400 + 86400
    process.exchange(midnight - 5, money="1")
    process.spend("1", epoch=midnight - 5)
    process.exchange(midnight - 1, money="0.5")
    assert process.available(midnight - 1) == 0
    assert process.account.unspent(Moment(0, midnight - 1)) == 0
    assert process.account.unspent(Moment(0, midnight)) is None, "nobody has looked at the new day yet"
    process.exchange(midnight, money="0.5")
    assert process.available(midnight) == D("0.5")


def test_a_budget_that_was_lowered_holds_from_the_next_exchange_on(database: Engine) -> None:
    process = Process(database, "one")
    process.exchange(money="0.8")
    process.account.change(replace(DOLLAR, budgets=(Budget(Period.DAILY, D("0.3")),)))
    process.exchange()
    process.exchange()
    assert process.available() <= D("0.3")


def test_where_more_was_used_than_reserved_the_next_lease_is_right_again(database: Engine) -> None:
    process = Process(database, "one")
    process.exchange(money="0.6")
    process.account.money.reserve(D("0.6"), EPOCH)
    process.account.money.settle(D("0.6"), D("0.9"))
    assert process.available() == D("-0.3")
    process.store("0.9")
    with process.account.money.waiting(D("0.1")):
        demand = process.account.demand(Moment(EPOCH, EPOCH), all_stored=True)
    assert demand is not None
    answers = exchange(database, "one", [demand], EPOCH)
    process.account.take(demand, answers["team:demo"], EPOCH + 10, EPOCH + 8, EPOCH)
    assert process.available() == leased(database)["one"] == D("0.1")


# --- Processes that die, and databases that are away ---


def test_the_lease_of_a_process_that_died_comes_back_when_it_expires(database: Engine) -> None:
    Process(database, "dead").exchange(money="0.8")
    other = Process(database, "other")
    other.exchange(EPOCH + 9, money="0.5")
    assert other.available(EPOCH + 9) == D("0.2")
    other.exchange(EPOCH + 10.1, money="0.5")
    assert other.available(EPOCH + 10.1) == D("0.5")


def test_a_process_that_was_cut_off_stops_before_others_get_what_it_had(database: Engine) -> None:
    process = Process(database, "one")
    process.exchange(money="0.8")
    assert process.available(EPOCH + 7.9) == D("0.8")
    assert process.available(EPOCH + 8) == 0


def test_a_process_that_comes_back_late_finds_what_is_left(database: Engine) -> None:
    late, other = Process(database, "late"), Process(database, "other")
    late.exchange(money="0.8")
    other.exchange(EPOCH + 20, money="0.9")
    late.exchange(EPOCH + 21, money="0.8")
    assert late.available(EPOCH + 21) == D("0.1")


def test_after_an_outage_nobody_takes_what_others_had_before(database: Engine) -> None:
    one, other = Process(database, "one"), Process(database, "other")
    one.exchange(money="0.8")
    one.spend("0.3", stored=False)
    other.exchange(EPOCH + 60, money="1", reclaim=False)
    assert other.available(EPOCH + 60) == D("0.2")
    one.store("0.3")
    one.exchange(EPOCH + 61, reclaim=False)
    assert sum(leased(database).values()) <= D("0.7")


@pytest.mark.parametrize("committed", [True, False])
def test_an_error_at_the_commit_neither_loses_money_nor_makes_any(database: Engine, committed: bool) -> None:
    process = Process(database, "one")
    process.exchange(money="0.6")
    process.spend("0.1")

    def fail(connection: Connection) -> None:
        connection.connection.commit() if committed else connection.connection.rollback()
        raise OperationalError("COMMIT", {}, Exception("the connection was lost"))

    event.listen(database, "commit", fail)
    with pytest.raises(ExchangeFailed, match="the connection was lost"):
        process.exchange(EPOCH + 1, money="0.8")
    event.remove(database, "commit", fail)

    assert process.available() == D("0.5"), "only what is certain is used"
    process.exchange(EPOCH + 2, money="0.8")
    assert process.available() == leased(database)["one"] == D("0.8")


# --- Rates ---


def test_the_slices_of_a_minute_are_no_more_than_its_limit(database: Engine) -> None:
    limited = Allowance("team:demo", Limits(requests_per_minute=5, tokens_per_minute=100))
    granted = {"requests": 0, "tokens": 0}
    at = Moment(EPOCH, EPOCH)
    for holder in ("one", "other"):
        account = Account(limited)
        for _ in range(3):
            with account.waiting(40, at):
                demand = account.demand(at)
            assert demand is not None
            answer = exchange(database, holder, [demand], EPOCH)["team:demo"]
            assert answer.requests is not None
            assert answer.tokens is not None
            granted["requests"] += answer.requests.amount
            granted["tokens"] += answer.tokens.amount
    assert granted == {"requests": 5, "tokens": 100}


def test_the_next_minute_has_all_of_its_limit(database: Engine) -> None:
    account = Account(Allowance("team:demo", Limits(requests_per_minute=1)))
    for epoch in (EPOCH, EPOCH + 60):
        at = Moment(epoch, epoch)
        with account.waiting(0, at):
            demand = account.demand(at)
        assert demand is not None
        account.take(demand, exchange(database, "one", [demand], epoch)["team:demo"], epoch + 10, epoch + 8, epoch)
        assert account.short_of(0, at) is None
        account.enter(0, at)
        assert account.short_of(0, at) == "requests"
        assert account.hopeless(account.short_of(0, at), 0, at)  # type: ignore[arg-type]


# --- Many at once ---


def test_processes_that_ask_at_once_get_no_more_than_there_is(database: Engine, database_place: Path | str) -> None:
    def ask(holder: str) -> None:
        engine = open_database(database_place)
        try:
            processes = [Process(engine, holder, replace(DOLLAR, scope=f"team:{team}")) for team in ("demo", "b", "c")]
            for _ in range(10):
                for process in processes:
                    process.exchange(money="0.05")
                    if process.available() >= D("0.02"):
                        process.account.money.reserve(D("0.02"), EPOCH)
        except BaseException as error:
            errors.append(error)
        finally:
            engine.dispose()

    errors: list[BaseException] = []
    threads = [threading.Thread(target=ask, args=(f"holder{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with reading(database) as connection:
        held: dict[str, Decimal] = {}
        for row in connection.execute(select(leases)):
            held[row.scope] = held.get(row.scope, D(0)) + row.amount
    assert held.keys() == {"team:demo", "team:b", "team:c"}
    assert all(D("0.5") < amount <= 1 for amount in held.values())


def test_what_nobody_can_ask_for_any_more_is_forgotten(database: Engine) -> None:
    limited = replace(DOLLAR, limits=Limits(requests_per_minute=1))
    at = Moment(EPOCH, EPOCH)
    account = Account(limited)
    with account.waiting(0, at), account.money.waiting(D("0.5")):
        demand = account.demand(at)
    assert demand is not None
    exchange(database, "one", [demand], EPOCH)
    sweep(database, EPOCH + 3600)
    assert leased(database) == {"one": D("0.5")}
    sweep(database, EPOCH + 2 * 86400)
    assert leased(database) == {}
    with reading(database) as connection:
        assert not connection.execute(select(rate_grants)).all()
