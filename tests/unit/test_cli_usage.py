"""`meritorder usage`, on both databases."""

import csv
import io
import json
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, insert

from meritorder.cli.main import main
from meritorder.ledger.replica_time import Sample, record_minute
from meritorder.ledger.schema import charges, requests

HOUR = 3600.0


@pytest.fixture
def now(database: Engine) -> float:
    """An hour ago, with two requests, a replica that one of them used, and one whose price is not known."""
    now = time.time()
    hour = now // HOUR * HOUR - HOUR
    _used(database, "red", hour + 60, "openai/gpt", 1000, 234, "0.000097654321")
    _used(database, "blue", hour + 60, "faq", 10, 1, "0", estimated=True)
    _used(database, "blue", hour + 120, "acme/large", 1, 1, None)
    for minute in range(30):
        record_minute(database, hour + 60 * minute, [Sample("faq", 1, Decimal("2.5")), Sample("new", 3, None)])
    return now


@pytest.fixture
def place(database_place: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the commands find the database as they do in use: by the environment."""
    monkeypatch.setenv("MERITORDER_STATE_DIR", str(database_place if isinstance(database_place, Path) else tmp_path))
    if isinstance(database_place, str):
        monkeypatch.setenv("MERITORDER_DATABASE_URL", database_place)
    else:
        monkeypatch.delenv("MERITORDER_DATABASE_URL", raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["usage", *arguments])


@pytest.mark.usefixtures("now", "place")
class TestUsage:
    def test_a_table_has_a_sum_and_says_what_is_not_in_it(self) -> None:
        lines = [" ".join(line.split()) for line in run().output.splitlines() if line.strip()]
        assert lines[1] == "team requests errors input cached output marginal amortised total"
        assert lines[3:5] == [
            "blue 2 0 11 0 2 ≥ 0.000000 1.250000 ≥ 1.250000",
            "red 1 0 1,000 0 234 0.000098 0.000000 0.000098",
        ]
        assert lines[6] == "total 3 0 1,011 0 236 ≥ 0.000098 1.250000 ≥ 1.250098"
        assert lines[7:] == [
            "1 requests have a charge without a known price, which is in no sum (≥).",
            "1.5 replica-hours of 'new' have no price: set spec.replicaHourPrice of the Model.",
            "1 requests have tokens that were counted here, since the backend reported none.",
        ]

    def test_numbers_are_right_aligned(self) -> None:
        header, _, blue, red = run().output.splitlines()[2:6]
        assert header.rstrip().endswith(" total")
        assert header.index("requests") + len("requests") == blue.index(" 2 ") + 2 == red.index(" 1 ") + 2

    def test_csv_is_exact_and_has_no_sum(self) -> None:
        blue, red = csv.DictReader(io.StringIO(run("--format", "csv").output))
        assert (blue["team"], red["team"]) == ("blue", "red")
        assert (red["marginal_usd"], red["input_tokens"], red["total_usd"]) == (
            "0.000097654321",
            "1000",
            "0.000097654321",
        )
        assert (blue["amortised_usd"], blue["unpriced_requests"], blue["estimated_requests"]) == ("1.25", "1", "1")

    def test_json_is_exact_and_as_the_api_has_it(self) -> None:
        report = json.loads(run("--format", "json").output)
        assert report["object"] == "usage_report"
        assert [row["label"] for row in report["data"]] == ["blue", "red"]
        assert report["total"]["total_usd"] == "1.250097654321"
        assert report["unpriced_replica_minutes"] == {"new": 90}

    @pytest.mark.parametrize(
        ("arguments", "labels"),
        [
            (["--by", "key"], ["key_blue", "key_red"]),
            (["--by", "model"], ["assistant"]),
            (["--by", "backend"], ["faq", "openai/gpt", "acme/large"]),
            (["--by", "backend", "--team", "blue"], ["faq", "acme/large"]),
            (["--backend", "openai/gpt"], ["red"]),
            (["--key", "key_red"], ["red"]),
            (["--model", "other"], []),
            (["--until", "1d"], []),
            (["--since", "2h", "--until", "0h"], ["blue", "red"]),
        ],
    )
    def test_shows_what_was_asked_for(self, arguments: list[str], labels: list[str]) -> None:
        rows = csv.reader(io.StringIO(run(*arguments, "--format", "csv").output))
        assert [row[0] for row in rows][1:] == labels

    def test_a_day_is_one_in_utc(self, now: float) -> None:
        day = datetime.fromtimestamp(now // HOUR * HOUR - HOUR, UTC).date()
        report = json.loads(run("--by", "day", "--since", str(day), "--format", "json").output)
        assert [row["label"] for row in report["data"]] == [str(day)]
        until = json.loads(run("--since", str(day - timedelta(days=2)), "--until", str(day), "--format", "json").output)
        assert until["data"] == []
        assert until["until"] == f"{day}T00:00:00Z"


@pytest.mark.usefixtures("place")
class TestNothing:
    def test_the_command_explains_itself(self) -> None:
        assert "(idle)" in run("--help").output

    def test_is_a_sum_of_nothing(self) -> None:
        assert "total" in run().output
        assert run().exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "colour"], "'colour' is not one of 'team', 'key', 'model', 'backend', 'day'"),
        (["--since", "yesterday"], "expected a day such as 2026-01-31"),
        (["--since", "1d", "--until", "2d"], "--since is not before --until"),
        (["--format", "xml"], "'xml' is not one of"),
        (["--database", "mysql://user:secret@host/name"], "the database URL is not of the form"),
    ],
)
def test_what_is_wrong_is_said_and_never_a_password(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run("--state-dir", str(tmp_path), *arguments)
    assert result.exit_code != 0
    assert said in " ".join(result.output.split())
    assert "secret" not in result.output


def _used(
    engine: Engine,
    team: str,
    at: float,
    backend: str,
    given: int,
    output: int,
    cost: str | None,
    estimated: bool = False,
) -> None:
    number = f"{team}-{at}"
    tier = "hosted" if "/" in backend else "self-run"
    tokens = {column.name: 0 for column in charges.columns if column.name.endswith("_tokens")}
    charge = {
        **tokens, "request": number, "number": 0, "backend": backend, "tier": tier, "input_tokens": given,
        "output_tokens": output, "estimated": estimated, "cost_usd": None if cost is None else Decimal(cost),
    }  # fmt: skip
    request = {
        "id": number, "request_id": number, "started_at": at, "team": team, "key_id": f"key_{team}",
        "route": "assistant", "endpoint": "chat/completions", "backend": backend, "tier": tier, "attempts": 1,
        "outcome": "completed", "status": 200, "duration": 1.0,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(requests), request)
        connection.execute(insert(charges), charge)
