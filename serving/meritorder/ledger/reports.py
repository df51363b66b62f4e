"""Who used what, and what it cost: the requests and the replica hours of a time, added up in the database.

Two costs stand side by side. The *marginal* cost is what requests caused: the tokens of hosted models. The *amortised*
cost is what self-run replicas cost while they ran, hour by hour, shared by the work that requests gave them. Hours in
which nobody gave a replica work are nobody's: the row `(idle)`. So the rows of a report add up to the bill.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, case, func, literal_column, select, true

from meritorder.core.catalog import Tier
from meritorder.core.pricing import EXACT
from meritorder.core.usage import Outcome
from meritorder.ledger.database import exact_sum, reading, whole
from meritorder.ledger.replica_time import NANO, OUTPUT_TOKEN_WORK, ReplicaHours, bills, shares
from meritorder.ledger.schema import charges, replica_minutes, requests

IDLE = "(idle)"
NONE = "(none)"
"""No backend answered."""

ERRORS = (Outcome.REJECTED, Outcome.REFUSED, Outcome.FAILED)
"""A client that left is none."""

_HOUR = 3600
_DAY = 86400
_YEAR_9999 = 253_370_764_800  # what is later cannot be shown in every time zone
_AGO = re.compile(r"([0-9]{1,5})([dh])")


class By(StrEnum):
    """What the rows of a report are."""

    TEAM = "team"
    KEY = "key"
    MODEL = "model"  # the name that was asked for: a route's, or a backend's own
    BACKEND = "backend"
    DAY = "day"  # in UTC


@dataclass(slots=True)
class Row:
    """What stands behind one `label`. Tokens and costs are those of all attempts that were charged for.

    `unpriced_requests` have a charge that no price was known for, which is in no sum; `estimated_requests` have one
    that was counted here, because the backend reported none.
    """

    label: str
    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    marginal_usd: Decimal = Decimal(0)
    amortised_usd: Decimal = Decimal(0)
    unpriced_requests: int = 0
    estimated_requests: int = 0

    @property
    def total_usd(self) -> Decimal:
        with localcontext(EXACT):
            return self.marginal_usd + self.amortised_usd

    def to_json(self) -> dict[str, Any]:
        """Its fields in the order of a table; money as exact decimals in strings."""
        named = {one.name: getattr(self, one.name) for one in fields(self)} | {"total_usd": self.total_usd}
        return {name: plain(value) if isinstance(value, Decimal) else value for name, value in named.items()}


@dataclass(frozen=True, slots=True)
class Report:
    """The rows, the dearest first and days in their order, and their sum.

    `unpriced_replicas` are the minutes of each backend's replicas that have no price, and so are in no row.
    """

    by: By
    since: float
    until: float
    rows: list[Row]
    total: Row
    unpriced_replicas: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values, of which money is exact decimals in strings."""
        return {
            "object": "usage_report",
            "by": self.by.value,
            "since": timestamp(self.since),
            "until": timestamp(self.until),
            "data": [row.to_json() for row in self.rows],
            "total": self.total.to_json(),
            "unpriced_replica_minutes": dict(self.unpriced_replicas),
        }


def usage_report(engine: Engine, by: By, since: float, until: float, only: Mapping[By, str] | None = None) -> Report:
    """Add up what was used from `since` on and before `until`, in seconds since the epoch.

    A request belongs to the moment at which it started. `only` keeps what has these labels; `By.DAY` is none of them.
    With a team, a key or a model among them, replica hours are charged as ever, and what falls to others is left out.
    """
    rows: defaultdict[str, Row] = defaultdict(lambda: Row(""))
    selection = _Selection(by, since, until, dict(only or {}))
    with reading(engine) as connection, localcontext(EXACT):
        for found in connection.execute(_requests(selection)).mappings():
            row = rows[_label(by, found["label"])]
            row.requests, row.errors = found["requests"], found["errors"]
        for found in connection.execute(_charges(selection)).mappings():
            row = rows[_label(by, found["label"])]
            row.input_tokens = int(found["input_tokens"])
            row.cached_input_tokens = int(found["cached_input_tokens"])
            row.output_tokens = int(found["output_tokens"])
            row.marginal_usd = found["marginal_usd"] or Decimal(0)
            row.unpriced_requests, row.estimated_requests = found["unpriced_requests"], found["estimated_requests"]
        hours = _replica_hours(connection, selection)
        for label, nano in _amortised(connection, selection, hours):
            rows[label].amortised_usd += Decimal(nano).scaleb(-NANO)
        for label, row in rows.items():
            row.label = label
        ordered, total = _ordered(by, rows.values()), _total(rows.values())
        return Report(by, since, until, ordered, total, _unpriced(hours))


def parse_moment(text: str, now: float) -> float:
    """`2026-01-31` (its beginning in UTC), an RFC 3339 time, or `7d` or `12h`: that long ago, to the full hour.

    Raises:
        ValueError: it is none of them. The message completes "expected ...".
    """
    if ago := _AGO.fullmatch(text):
        seconds = int(ago[1]) * (_DAY if ago[2] == "d" else _HOUR)
        return max(0.0, (now - seconds) // _HOUR * _HOUR)
    try:
        named = datetime.fromisoformat(text)
        moment = (named if named.tzinfo else named.replace(tzinfo=UTC)).timestamp()
        if 0 <= moment < _YEAR_9999:
            return moment
    except (ValueError, OverflowError):
        pass
    raise ValueError("a day such as 2026-01-31, a time such as 2026-01-31T12:00:00Z, or 7d or 12h for that long ago")


def timestamp(moment: float) -> str:
    """Seconds since the epoch as an RFC 3339 time, to the second."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def plain(value: Decimal) -> str:
    """An exact decimal without exponent and without zeros at its end."""
    return format(value.normalize(EXACT), "f") if value else "0"


@dataclass(frozen=True, slots=True)
class _Selection:
    """What is asked for, as parts of queries on `requests` and `charges`."""

    by: By
    since: float
    until: float
    only: dict[By, str]

    def label(self, backend: ColumnElement[Any]) -> ColumnElement[Any]:
        return self._dimensions(backend)[self.by].label("label")

    def wanted(self, backend: ColumnElement[Any]) -> ColumnElement[bool]:
        dimensions = self._dimensions(backend)
        return and_(true(), *(dimensions[by] == label for by, label in self.only.items()))

    def in_time(self, moment: ColumnElement[float]) -> ColumnElement[bool]:
        return and_(moment >= self.since, moment < self.until)

    @staticmethod
    def _dimensions(backend: ColumnElement[Any]) -> dict[By, ColumnElement[Any]]:
        return {
            By.TEAM: requests.c.team,
            By.KEY: requests.c.key_id,
            By.MODEL: requests.c.route,
            By.BACKEND: backend,
            By.DAY: _periods(requests.c.started_at, _DAY),
        }


def _periods(moment: ColumnElement[float], seconds: int) -> ColumnElement[int]:
    """How many whole periods lie between the epoch and `moment`."""
    # Not a parameter: PostgreSQL would not see that an expression to group by is that of the result.
    return whole(moment / literal_column(str(seconds)))


def _requests(selection: _Selection) -> Select[Any]:
    label = selection.label(requests.c.backend)
    return (
        select(
            label,
            func.count().label("requests"),
            func.count(case((requests.c.outcome.in_(ERRORS), 1))).label("errors"),
        )
        .where(selection.in_time(requests.c.started_at), selection.wanted(requests.c.backend))
        .group_by(label)
    )


def _charges(selection: _Selection) -> Select[Any]:
    label = selection.label(charges.c.backend)
    return (
        select(
            label,
            func.sum(charges.c.input_tokens).label("input_tokens"),
            func.sum(charges.c.cached_input_tokens).label("cached_input_tokens"),
            func.sum(charges.c.output_tokens).label("output_tokens"),
            exact_sum(charges.c.cost_usd).label("marginal_usd"),
            func.count(case((charges.c.cost_usd.is_(None), requests.c.id)).distinct()).label("unpriced_requests"),
            func.count(case((charges.c.estimated, requests.c.id)).distinct()).label("estimated_requests"),
        )
        .join_from(requests, charges, requests.c.id == charges.c.request)
        .where(selection.in_time(requests.c.started_at), selection.wanted(charges.c.backend))
        .group_by(label)
    )


def _replica_hours(connection: Connection, selection: _Selection) -> list[ReplicaHours]:
    table = replica_minutes.c
    hour = _periods(table.minute, _HOUR)
    query = (
        select(table.backend, hour, table.hour_price_usd, func.sum(table.replicas))
        .where(selection.in_time(table.minute))
        .group_by(table.backend, hour, table.hour_price_usd)
    )
    if By.BACKEND in selection.only:
        query = query.where(table.backend == selection.only[By.BACKEND])
    return [
        ReplicaHours(backend, int(hour), price, int(minutes))
        for backend, hour, price, minutes in connection.execute(query)
    ]


def _amortised(
    connection: Connection, selection: _Selection, hours: Iterable[ReplicaHours]
) -> Iterable[tuple[str, int]]:
    """Labels and their shares of what replicas cost, in 10**-9 dollars."""
    by = selection.by
    bill = bills(hours)
    if not bill:
        return
    users = selection.only.keys() & {By.TEAM, By.KEY, By.MODEL}
    work: defaultdict[tuple[str, int], list[tuple[str, bool, int]]] = defaultdict(list)
    for hour, backend, label, wanted, amount in connection.execute(_work(selection)):
        work[backend, hour].append((_label(by, label), bool(wanted), int(amount)))
    for (backend, hour), cost in bill.items():
        workers = sorted(work[backend, hour])
        if sum(amount for *_, amount in workers) > 0:
            divided = zip(workers, shares(cost, [amount for *_, amount in workers]), strict=True)
            yield from ((label, share) for (label, wanted, _), share in divided if wanted)
        elif not users:
            yield _idle(by, backend, hour), cost


def _work(selection: _Selection) -> Select[Any]:
    """The work that each label gave to each self-run backend in each hour, apart where it is not `wanted`."""
    columns = charges.c
    hour = _periods(requests.c.started_at, _HOUR)
    label = selection.label(columns.backend)
    wanted = case((selection.wanted(columns.backend), 1), else_=0)
    work = (columns.input_tokens - columns.cached_input_tokens) + OUTPUT_TOKEN_WORK * columns.output_tokens
    query = (
        select(hour.label("hour"), columns.backend, label, wanted.label("wanted"), func.sum(work))
        .join_from(requests, charges, requests.c.id == columns.request)
        .where(selection.in_time(requests.c.started_at), columns.tier == Tier.SELF_RUN.value)
        .group_by("hour", columns.backend, "label", "wanted")
    )
    if By.BACKEND in selection.only:
        query = query.where(columns.backend == selection.only[By.BACKEND])
    return query


def _idle(by: By, backend: str, hour: int) -> str:
    """A backend and a day have their idle hours themselves."""
    match by:
        case By.BACKEND:
            return backend
        case By.DAY:
            return _label(by, hour * _HOUR // _DAY)
        case _:
            return IDLE


def _label(by: By, found: Any) -> str:
    if by is By.DAY:
        return (datetime(1970, 1, 1) + timedelta(days=int(found))).date().isoformat()
    return NONE if found is None else str(found)


def _ordered(by: By, rows: Iterable[Row]) -> list[Row]:
    if by is By.DAY:
        return sorted(rows, key=lambda row: row.label)
    return sorted(rows, key=lambda row: (row.label in (IDLE, NONE), -row.total_usd, row.label))


def _total(rows: Iterable[Row]) -> Row:
    total = Row("total")
    for row in rows:
        for one in fields(Row)[1:]:
            setattr(total, one.name, getattr(total, one.name) + getattr(row, one.name))
    return total


def _unpriced(hours: Iterable[ReplicaHours]) -> Mapping[str, int]:
    minutes: defaultdict[str, int] = defaultdict(int)
    for one in hours:
        if one.price is None:
            minutes[one.backend] += one.minutes
    return dict(minutes)
