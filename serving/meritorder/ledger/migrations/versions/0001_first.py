"""The first tables, and what the SQLite database of the development before them held."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    before = _set_aside()
    _keys()
    _usage()
    _budgets()
    _replicas()
    if before:
        _take_over()
    if op.get_bind().dialect.name == "sqlite":
        op.execute("PRAGMA user_version = 2")  # that development refuses it, then, as one of a newer release


def _money() -> sa.types.TypeEngine[Any]:
    return sa.Numeric().with_variant(sa.String(), "sqlite")


def _keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("team", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("admin", sa.Boolean, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "revisions",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )


def _usage() -> None:
    op.create_table(
        "requests",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("team", sa.String, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("route", sa.String, nullable=False),
        sa.Column("arm", sa.String),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("backend", sa.String),
        sa.Column("tier", sa.String),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("time_to_first_token", sa.Float),
        sa.Column("duration", sa.Float, nullable=False),
    )
    op.create_index("ix_requests_request_id", "requests", ["request_id"])
    op.create_index("requests_by_time", "requests", ["started_at"])
    op.create_table(
        "charges",
        sa.Column("request", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("backend", sa.String, nullable=False),
        sa.Column("tier", sa.String, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger, nullable=False),
        sa.Column("audio_input_tokens", sa.BigInteger, nullable=False),
        sa.Column("image_input_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("audio_output_tokens", sa.BigInteger, nullable=False),
        sa.Column("image_output_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("cost_usd", _money()),
    )


def _budgets() -> None:
    op.create_table(
        "spend",
        sa.Column("scope", sa.String, primary_key=True),
        sa.Column("period", sa.String, primary_key=True),
        sa.Column("period_start", sa.Float, primary_key=True),
        sa.Column("usd", _money(), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("scope", sa.String, primary_key=True),
        sa.Column("resource", sa.String, primary_key=True),
        sa.Column("holder", sa.String, primary_key=True),
        sa.Column("amount", _money(), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "rate_grants",
        sa.Column("scope", sa.String, primary_key=True),
        sa.Column("resource", sa.String, primary_key=True),
        sa.Column("window_start", sa.Float, primary_key=True),
        sa.Column("granted", sa.BigInteger, nullable=False),
    )


def _replicas() -> None:
    op.create_table(
        "replica_minutes",
        sa.Column("backend", sa.String, primary_key=True),
        sa.Column("minute", sa.Float, primary_key=True),
        sa.Column("replicas", sa.Integer, nullable=False),
        sa.Column("hour_price_usd", _money()),
    )


def _set_aside() -> bool:
    if op.get_bind().dialect.name != "sqlite" or not sa.inspect(op.get_bind()).has_table("usage"):
        return False
    op.rename_table("api_keys", "old_keys")
    op.rename_table("usage", "old_usage")
    return True


def _take_over() -> None:
    op.execute(
        "INSERT INTO api_keys (id, team, name, digest, admin, limits, created_at, revoked_at) "
        "SELECT id, team, name, digest, 0, '{}', created_at, revoked_at FROM old_keys"
    )
    op.execute("INSERT INTO revisions (name, number) VALUES ('keys', 1)")
    op.execute(
        "INSERT INTO requests (id, request_id, started_at, team, key_id, route, endpoint, backend, tier, attempts, "
        "outcome, status, time_to_first_token, duration) "
        "SELECT 'old_' || id, request_id, started_at, team, key_id, route, endpoint, backend, tier, attempts, "
        "outcome, status, time_to_first_token, duration FROM old_usage"
    )
    op.execute(
        "INSERT INTO charges (request, number, backend, tier, input_tokens, output_tokens, cached_input_tokens, "
        "cache_write_tokens, audio_input_tokens, image_input_tokens, reasoning_tokens, audio_output_tokens, "
        "image_output_tokens, estimated, cost_usd) "
        "SELECT 'old_' || id, 0, backend, tier, input_tokens, output_tokens, cached_input_tokens, "
        "0, 0, 0, 0, 0, 0, estimated, cost_usd FROM old_usage WHERE backend IS NOT NULL"
    )
    op.execute("DROP TABLE old_keys")
    op.execute("DROP TABLE old_usage")
