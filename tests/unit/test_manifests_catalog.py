"""What routing and admission get to see of the manifests."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from meritorder.core.catalog import (
    Arm,
    Backend,
    Candidate,
    Capabilities,
    Catalog,
    Endpoint,
    Hedge,
    Modality,
    Objective,
    Override,
    Route,
    Split,
    StickyBy,
    Team,
)
from meritorder.core.limits import Budget, Limits, Period
from meritorder.core.pricing import FREE
from meritorder.manifests import prices
from meritorder.manifests.catalog import catalog
from meritorder.manifests.folder import read
from meritorder.manifests.kinds import OverrideName

CHAT = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS})
PRICE = {"input": 1, "output": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two backends to write about: `faq`, and `hosted/chat`."""
    write(tmp_path, "Model", "faq", source="file:///weights")
    write(tmp_path, "Provider", "hosted", type="simulated", models=[{"name": "chat", "price": PRICE}])
    return tmp_path


def write(folder: Path, kind: str, name: str, **spec: Any) -> None:
    manifest = {"apiVersion": "meritorder.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    (folder / f"{kind}-{name}.yaml").write_text(yaml.safe_dump(manifest))


def resolved(folder: Path) -> Catalog:
    return catalog(read([folder]))


def model(folder: Path, **spec: Any) -> Backend:
    write(folder, "Model", "faq", **{"source": "file:///weights", **spec})
    return resolved(folder).backends["faq"]


def hosted(folder: Path, account: dict[str, Any] | None = None, **fields: Any) -> Backend:
    written = {"type": "simulated", "models": [{"name": "chat", **fields}], **(account or {})}
    write(folder, "Provider", "hosted", **written)
    return resolved(folder).backends["hosted/chat"]


def route(folder: Path, **spec: Any) -> Route:
    candidates = [{"model": "faq"}, {"provider": "hosted/chat"}]
    write(folder, "Route", "assistant", **{"candidates": candidates, **spec})
    return resolved(folder).routes["assistant"]


def team(folder: Path, **spec: Any) -> Team:
    write(folder, "Team", "demo", **spec)
    return resolved(folder).teams["demo"]


class TestModel:
    def test_of_what_nothing_is_written_the_least_is_promised(self, folder: Path) -> None:
        assert model(folder).capabilities == Capabilities(CHAT, tools=False)
        assert model(folder).replica_hour_price is None

    def test_what_is_written_holds(self, folder: Path) -> None:
        written = {
            "endpoints": ["chat/completions"],
            "contextWindow": 4096,
            "maxOutputTokens": 512,
            "modalities": ["image", "audio", "file"],
            "tools": True,
            "structuredOutput": False,
        }
        assert model(folder, capabilities=written).capabilities == Capabilities(
            endpoints=frozenset({Endpoint.CHAT_COMPLETIONS}),
            context_window=4096,
            max_output_tokens=512,
            modalities=frozenset(Modality),
            tools=True,
            structured_output=False,
        )

    @pytest.mark.parametrize(
        ("engine_args", "written", "window"),
        [
            pytest.param({"max_model_len": 2048}, {}, 2048, id="the engine's"),
            pytest.param({"max_model_len": 2048}, {"contextWindow": 1024}, 1024, id="less, where that is written"),
            pytest.param({}, {"contextWindow": 1024}, 1024, id="what is written alone"),
            pytest.param({"max_model_len": -1}, {}, None, id="unknown, where vLLM decides"),
            pytest.param({"max_model_len": "auto"}, {}, None, id="unknown, where vLLM decides, in words"),
            pytest.param({"max_model_len": True}, {}, None, id="unknown, where vLLM will refuse it"),
        ],
    )
    def test_the_context_window_is(
        self, folder: Path, engine_args: dict[str, Any], written: dict[str, Any], window: int | None
    ) -> None:
        assert model(folder, engineArgs=engine_args, capabilities=written).capabilities.context_window == window

    @pytest.mark.parametrize(
        ("engine_args", "written", "tools"),
        [
            ({"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}, {}, True),
            ({"enable_auto_tool_choice": True}, {"tools": False}, False),
            ({"enable_auto_tool_choice": False}, {}, False),
            ({}, {"tools": True}, True),
        ],
    )
    def test_it_has_tools_where_vllm_can_parse_their_calls_or_someone_says_so(
        self, folder: Path, engine_args: dict[str, Any], written: dict[str, Any], tools: bool
    ) -> None:
        assert model(folder, engineArgs=engine_args, capabilities=written).capabilities.tools is tools

    def test_a_replica_serves_as_many_at_once_as_its_engine_decodes_together(self, folder: Path) -> None:
        backend = model(folder, engineArgs={"max_num_seqs": 8}, scaling={"minReplicas": 3})
        assert (backend.replica_concurrency, backend.concurrency) == (8, 24)

    def test_its_requests_are_free_and_its_replicas_are_not(self, folder: Path) -> None:
        backend = model(folder, replicaHourPrice=1.29)
        assert (backend.price, backend.replica_hour_price) == (FREE, Decimal("1.29"))


class TestHostedModel:
    def test_of_what_nothing_is_written_the_usual_is_expected(self, folder: Path) -> None:
        assert hosted(folder, price=PRICE).capabilities == Capabilities(CHAT)

    def test_what_is_written_holds(self, folder: Path) -> None:
        written = {"contextWindow": 1_048_576, "modalities": ["image"], "tools": False}
        assert hosted(folder, price=PRICE, capabilities=written).capabilities == Capabilities(
            CHAT, context_window=1_048_576, modalities=frozenset({Modality.IMAGE}), tools=False
        )

    def test_the_limits_are_those_of_the_account(self, folder: Path) -> None:
        backend = hosted(folder, {"limits": {"rpm": 500, "tpm": 30_000_000}}, price=PRICE)
        assert backend.limits == Limits(500, 30_000_000, 64)
        assert backend.concurrency == 64

    def test_the_price_is_the_one_that_is_written(self, folder: Path) -> None:
        price = hosted(folder, price={"input": 0.25, "cachedInput": 0.025, "output": 2}).price
        assert price is not None
        rates = price.rates(100, moment=0)
        assert (rates.input, rates.cached_input, rates.output) == (Decimal("0.25"), Decimal("0.025"), Decimal(2))

    def test_without_one_it_is_that_of_the_catalogue_under_the_providers_own_name(self, folder: Path) -> None:
        listed = next(entry for entry in prices.catalogue() if entry.provider == "openai")
        account = {"type": "openai", "credentials": {"env": "KEY"}}
        assert hosted(folder, account, upstreamName=listed.names[0]).price == listed.price

    def test_and_what_is_in_neither_has_no_price(self, folder: Path) -> None:
        account = {"type": "openai", "credentials": {"env": "KEY"}}
        assert hosted(folder, account, upstreamName="a-model-of-tomorrow").price is None
        assert hosted(folder).price is None


class TestRoute:
    def test_of_what_nothing_is_written_the_core_says_what_holds(self, folder: Path) -> None:
        assert route(folder) == Route("assistant", (Candidate("faq"), Candidate("hosted/chat")))
        assert route(folder, objective={}, candidates=[{"model": "faq"}]) == Route("assistant", (Candidate("faq"),))

    def test_what_is_written_holds(self, folder: Path) -> None:
        written = route(
            folder,
            candidates=[{"model": "faq", "quality": 0.8}, {"provider": "hosted/chat"}],
            objective={
                "qualityFloor": 0.75,
                "qualityWorth": 0.002,
                "ttftSLO": 1.5,
                "latenessCost": "0.005",
                "timeout": 30,
            },
            affinity=False,
            retries=3,
            hedge={"maxShare": 0.05},
        )
        assert written == Route(
            name="assistant",
            candidates=(Candidate("faq", 0.8), Candidate("hosted/chat")),
            objective=Objective(0.75, 0.002, 1.5, 0.005, 30),
            hedge=Hedge(0.05),
            affinity=False,
            retries=3,
        )

    def test_being_late_has_a_cost_even_where_none_is_written(self, folder: Path) -> None:
        assert route(folder, objective={"ttftSLO": 2}).objective == Objective(ttft_slo=2)

    def test_a_split_has_its_arms_in_order(self, folder: Path) -> None:
        arms = [
            {"name": "stable", "weight": 95, "candidates": ["faq"]},
            {"name": "canary", "weight": 5, "candidates": ["hosted/chat"]},
        ]
        stable, canary = Arm("stable", 95, frozenset({"faq"})), Arm("canary", 5, frozenset({"hosted/chat"}))
        assert route(folder, split={"arms": arms}).split == Split(StickyBy.KEY, (stable, canary))
        assert route(folder, split={"stickyBy": "user", "arms": arms}).split == Split(StickyBy.USER, (stable, canary))

    def test_arms_may_share_a_candidate_and_a_floor_counts_those_that_no_arm_names(self, folder: Path) -> None:
        write(folder, "Model", "small", source="file:///small")
        candidates = [{"model": "faq", "quality": 0.5}, {"model": "small", "quality": 0.6}, {"provider": "hosted/chat"}]
        arms = [{"name": name, "weight": 1, "candidates": sorted({"faq", name})} for name in ("faq", "small")]
        written = route(folder, candidates=candidates, objective={"qualityFloor": 0.9}, split={"arms": arms})
        assert written.split is not None
        assert [arm.candidates for arm in written.split.arms] == [{"faq"}, {"faq", "small"}]

    @pytest.mark.parametrize("name", ["faq", "hosted/chat"])
    def test_the_name_of_a_backend_is_a_route_to_it_alone(self, folder: Path, name: str) -> None:
        assert resolved(folder).routes[name] == Route(name, (Candidate(name),))


class TestTeam:
    def test_of_what_nothing_is_written_there_is_no_limit(self, folder: Path) -> None:
        assert team(folder) == Team("demo")

    def test_what_is_written_holds(self, folder: Path) -> None:
        written = team(
            folder,
            routes=["faq"],
            budgets=[{"period": "daily", "amount": 0.5}, {"period": "total", "amount": 1_000_000}],
            limits={"rpm": 600, "tpm": 2_000_000, "concurrency": 8},
            overrides=["maxCost", "exclude"],
        )
        assert written == Team(
            name="demo",
            routes=frozenset({"faq"}),
            limits=Limits(600, 2_000_000, 8),
            budgets=(Budget(Period.DAILY, Decimal("0.5")), Budget(Period.TOTAL, Decimal(1_000_000))),
            overrides=frozenset({Override.MAX_COST, Override.EXCLUDE}),
        )

    def test_a_limit_that_is_left_out_is_none(self, folder: Path) -> None:
        assert team(folder, limits={"rpm": 5}).limits == Limits(requests_per_minute=5)

    def test_a_budget_of_nothing_is_no_missing_budget(self, folder: Path) -> None:
        written = team(folder, budgets=[{"period": "monthly", "amount": 0}])
        assert written.budgets == (Budget(Period.MONTHLY, Decimal(0)),)

    def test_no_override_may_be_allowed(self, folder: Path) -> None:
        assert team(folder, overrides=[]) == replace(Team("demo"), overrides=frozenset())

    def test_there_is_a_name_for_every_override(self) -> None:
        assert [name.name for name in OverrideName] == [override.name for override in Override]
