"""The tables, in SQLAlchemy Core. How one version of them becomes the next is in `migrations`.

Money is exact in both databases: NUMERIC in PostgreSQL, a decimal's text in SQLite, whose own numbers are floats.
Times are seconds since the epoch.
"""

from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
)
from sqlalchemy.types import JSON, TypeDecorator, TypeEngine


class Money(TypeDecorator[Decimal]):
    """US dollars, exact."""

    impl = Numeric
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String() if dialect.name == "sqlite" else Numeric())

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name != "sqlite" else format(value, "f")

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


metadata = MetaData()

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),  # public: names the key in lists and logs
    Column("team", String, nullable=False),
    Column("name", String, nullable=False),  # what it is for, in a person's words
    Column("digest", LargeBinary, nullable=False, unique=True),  # HMAC-SHA-256 of the key, which itself is nowhere
    Column("admin", Boolean, nullable=False),  # for the administration, and not for models; it has no team
    Column("limits", JSON, nullable=False),  # of this key alone: budgets and rates, {} where there are none
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

revisions = Table(
    "revisions",
    metadata,
    Column("name", String, primary_key=True),  # what has changed: "keys"
    Column("number", BigInteger, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("id", String, primary_key=True),  # ours, so that a record that is written again stays one
    Column("request_id", String, nullable=False, index=True),  # the client's, who may choose it twice
    Column("started_at", Float, nullable=False),
    Column("team", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("route", String, nullable=False),
    Column("arm", String),
    Column("endpoint", String, nullable=False),
    Column("backend", String),  # NULL: none answered
    Column("tier", String),
    Column("attempts", Integer, nullable=False),
    Column("outcome", String, nullable=False),
    Column("status", Integer, nullable=False),
    Column("time_to_first_token", Float),
    Column("duration", Float, nullable=False),
    Index("requests_by_time", "started_at"),
)

charges = Table(
    "charges",
    metadata,
    Column("request", String, primary_key=True),  # requests.id
    Column("number", Integer, primary_key=True),
    Column("backend", String, nullable=False),
    Column("tier", String, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_input_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("audio_input_tokens", BigInteger, nullable=False),
    Column("image_input_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("audio_output_tokens", BigInteger, nullable=False),
    Column("image_output_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),  # counted here, not reported by the backend
    Column("cost_usd", Money),  # marginal; NULL: nothing said what it costs
)

spend = Table(
    "spend",
    metadata,
    Column("scope", String, primary_key=True),  # of core.limits.Allowance
    Column("period", String, primary_key=True),
    Column("period_start", Float, primary_key=True),
    Column("usd", Money, nullable=False),  # the sum of the charges in it, changed with them in one transaction
)

leases = Table(
    "leases",
    metadata,
    Column("scope", String, primary_key=True),
    Column("resource", String, primary_key=True),  # "usd" or "concurrency"
    Column("holder", String, primary_key=True),  # one ingress process
    Column("amount", Money, nullable=False),  # what it may still use and has not reported as used
    Column("expires_at", Float, nullable=False),
)

rate_grants = Table(
    "rate_grants",
    metadata,
    Column("scope", String, primary_key=True),
    Column("resource", String, primary_key=True),  # "requests" or "tokens"
    Column("window_start", Float, primary_key=True),  # of a minute
    Column("granted", BigInteger, nullable=False),
)

replica_minutes = Table(
    "replica_minutes",
    metadata,
    Column("backend", String, primary_key=True),
    Column("minute", Float, primary_key=True),  # its start
    Column("replicas", Integer, nullable=False),
    Column("hour_price_usd", Money),  # per replica; NULL: the manifest names none
)
