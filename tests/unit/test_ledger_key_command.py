"""`meritorder key` on both databases: limits are given, kept and shown, and a URL is never repeated."""

from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine

from meritorder.cli.local_key import ensure_local_key
from meritorder.cli.main import main
from meritorder.core.limits import Budget, Limits, Period
from meritorder.ledger.keys import ApiKey, KeyLimits, KeyStore


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_place: Path | str) -> None:
    """The database of `database`, as a person chooses it."""
    monkeypatch.setenv("MERITORDER_STATE_DIR", str(tmp_path / "state"))
    if isinstance(database_place, str):
        monkeypatch.setenv("MERITORDER_DATABASE_URL", database_place)
    else:
        monkeypatch.delenv("MERITORDER_DATABASE_URL", raising=False)


def key(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["key", *arguments])


def stored(database: Engine) -> list[ApiKey]:
    return KeyStore(database, b"").list()


def test_a_key_is_made_with_its_limits_and_they_are_listed(database: Engine) -> None:
    made = key(
        "create", "--team", "demo", "--budget", "10/monthly", "--budget", "0.50/hourly", "--rpm", "60",
        "--tpm", "100000", "--concurrency", "4",
    )  # fmt: skip
    assert made.exit_code == 0
    assert made.stdout.startswith("mo-")
    [found] = stored(database)
    budgets = (Budget(Period.MONTHLY, Decimal(10)), Budget(Period.HOURLY, Decimal("0.50")))
    assert found.limits == KeyLimits(Limits(60, 100_000, 4), budgets)
    listed = key("list").stdout
    assert "10 USD monthly, 0.50 USD hourly, 60 requests/min, 100,000 tokens/min, 4 at once" in listed


def test_a_key_without_limits_has_none(database: Engine) -> None:
    assert key("create", "--team", "demo").exit_code == 0
    assert stored(database)[0].limits == KeyLimits()


def test_a_key_for_the_administration_has_no_team(database: Engine) -> None:
    made = key("create", "--admin", "--name", "mine")
    assert "for the administration" in made.stderr
    assert [(one.team, one.name, one.admin) for one in stored(database)] == [("", "mine", True)]
    assert "(admin)" in key("list").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name the team that pays with --team"),
        (("--team", "demo", "--admin"), "name the team that pays with --team"),
        (("--admin", "--rpm", "5"), "so it has no limits"),
        (("--team", "demo", "--budget", "10/monthly", "--budget", "5/monthly"), "two budgets for one period"),
        (("--team", "demo", "--rpm", "0"), "is not in the range x>=1"),
        *(
            (("--team", "demo", "--budget", budget), f"'{budget}' is not an amount in US dollars and one of hourly")
            for budget in ("10", "10/weekly", "ten/monthly", "-1/daily", "NaN/daily", "Infinity/daily", "/daily")
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(database: Engine, arguments: tuple[str, ...], said: str) -> None:
    refused = key("create", *arguments)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert stored(database) == []


def test_a_key_is_revoked(database: Engine) -> None:
    key("create", "--team", "demo")
    [made] = stored(database)
    assert key("revoke", made.id).exit_code == 0
    assert stored(database)[0].revoked_at is not None


def test_the_local_key_is_in_the_database_that_is_chosen(
    database: Engine, database_place: Path | str, tmp_path: Path
) -> None:
    url = database_place if isinstance(database_place, str) else None
    assert ensure_local_key(tmp_path / "state", "demo", url) == ensure_local_key(tmp_path / "state", "demo", url)
    assert [one.team for one in stored(database)] == ["demo"]


@pytest.mark.parametrize("url", ["postgresql://u:pa55word@127.0.0.1:1/ledger", "mysql://u:pa55word@host/ledger"])
def test_a_database_that_cannot_be_used_is_told_without_its_password(url: str) -> None:
    refused = key("list", "--database", url)
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: the ")
    assert "pa55word" not in refused.output
    assert "pa55word" not in key("list", "--help").output


def test_a_database_that_fails_meanwhile_is_told_in_a_sentence(database: Engine) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("DROP TABLE api_keys")
    refused = key("list")
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: the database does not do what it was asked to (")
    assert refused.output.count("\n") == 1
