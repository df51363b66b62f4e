"""A real ingress before many providers, all of which are one scripted upstream.

    test ──HTTP──► ingress ──► hosted proxy ──► ScriptedUpstream (model `sim-NAME` of provider NAME)

A test makes its own providers, routes and teams, so that nothing that the ingress learns of one is in the way of
another. The functions here write their manifests.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from tests.dataplane.conftest import PROVIDER_KEY, Ingress, _served, chat, eventually

from meritorder.core.limits import Budget, Limits
from meritorder.core.usage import UsageRecord
from meritorder.deployments.credentials import Credential
from meritorder.deployments.hosted import HostedProxy, Upstream
from meritorder.ledger.keys import KeyLimits, KeyStore, load_secret
from meritorder.testing.upstream import Behaviour, ReceivedRequest, Rule, Script, ScriptedUpstream

Manifest = dict[str, Any]


def manifest(kind: str, name: str, spec: Mapping[str, Any]) -> Manifest:
    return {
        "apiVersion": "meritorder.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": dict(spec),
    }  # fmt: skip


def provider(name: str, input: float | None = 1, output: float = 2, **more: Any) -> Manifest:
    """A provider whose one model is `NAME/chat`, for so many US dollars per million tokens; None: nobody knows.

    `price` are further rates, `limits` those of the account, the rest are the model's capabilities.
    """
    limits, price = more.pop("limits", {}), more.pop("price", {})
    model: dict[str, Any] = {"name": "chat", "upstreamName": f"sim-{name}", "capabilities": more}
    if input is not None:
        model["price"] = {"input": input, "output": output, **price}
    return manifest("Provider", name, {"type": "simulated", "limits": limits, "models": [model]})


def model(name: str, **spec: Any) -> Manifest:
    """A self-run model, which costs nothing."""
    return manifest("Model", name, {"source": f"hf://org/{name}", **spec})


def route(name: str, *candidates: str | Mapping[str, Any], **spec: Any) -> Manifest:
    """Over `candidates`, each a backend's name, or a mapping with more of what it is."""
    written = [
        each if isinstance(each, Mapping) else {"provider" if "/" in each else "model": each} for each in candidates
    ]
    return manifest("Route", name, {"candidates": written, **spec})


def team(name: str, **spec: Any) -> Manifest:
    return manifest("Team", name, spec)


@dataclass
class TeamsIngress(Ingress):
    """With a key for each team of its manifests."""

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for document in yaml.safe_load_all(self.manifests):
            if document["kind"] == "Team" and (name := document["metadata"]["name"]) not in self.keys:
                self.keys[name] = self.new_key(name)
        super().start()


@dataclass(frozen=True)
class Platform:
    ingress: Ingress
    upstream: ScriptedUpstream
    """Of all providers."""
    endpoints: Mapping[str, str]

    def script(self, **behaviours: Behaviour | Sequence[Behaviour]) -> None:
        """How the providers behave from now on; of a sequence, each for one request, and the last ever after."""
        rules = []
        for name, them in behaviours.items():
            *first, last = [them] if isinstance(them, Behaviour) else them
            pattern = self._upstream_name(name.replace("_", "-"))
            rules += [Rule(model=pattern, times=1, behaviour=one) for one in first]
            rules.append(Rule(model=pattern, behaviour=last))
        self.upstream.set_script(Script(rules=rules))

    def received(self, name: str) -> list[ReceivedRequest]:
        """What came to a provider or a model."""
        return [one for one in self.upstream.requests if one.model == self._upstream_name(name)]

    def _upstream_name(self, name: str) -> str:
        return f"sim-{name}" if f"provider-{name}" in self.endpoints else name

    async def wait_for(self, name: str, count: int = 1) -> None:
        """Return when so many requests have come to it."""
        await self.upstream.wait_until(lambda _: len(self.received(name)) >= count)

    def client(self, team: str) -> aiohttp.ClientSession:
        return self.ingress.session(self.ingress.keys[team])

    async def new_client(self, team: str, limits: Limits | None = None, *budgets: Budget) -> aiohttp.ClientSession:
        """With a further key, which has limits or budgets of its own."""
        with self.ingress.database() as engine:
            bounds = KeyLimits(limits or Limits(), budgets)
            _, key = KeyStore(engine, load_secret(self.ingress.folder)).create(team, limits=bounds)
        client = self.ingress.session(key)

        async def known() -> bool:
            async with client.get("/v1/models") as response:
                return response.status == 200

        await eventually(known)
        return client


@contextlib.asynccontextmanager
async def platform(
    folder: Path, *manifests: Manifest, ingress: type[Ingress] = TeamsIngress, **options: Any
) -> AsyncIterator[Platform]:
    """Everything that `manifests` name, up and ready; self-run models are reached in the same way as providers."""
    hosted = [each["metadata"]["name"] for each in manifests if each["kind"] == "Provider"]
    own = [each["metadata"]["name"] for each in manifests if each["kind"] == "Model"]
    key_file = folder / "provider-key"
    key_file.write_text(PROVIDER_KEY)
    keep = options.pop("keep_requests", 10_000)
    models = [*(f"sim-{name}" for name in hosted), *own]
    async with contextlib.AsyncExitStack() as stack:
        upstream = ScriptedUpstream(models=models, api_key=PROVIDER_KEY, keep_requests=keep)
        await stack.enter_async_context(upstream)
        account = Upstream("all", upstream.v1_url, Credential(file=key_file), 10_000)
        url = stack.enter_context(_served(HostedProxy(account)))
        endpoints = {f"provider-{name}": url for name in hosted} | {f"model-{name}": url for name in own}
        made = ingress(folder / "state", manifests=yaml.safe_dump_all(list(manifests)), **options)
        try:
            await stack.enter_async_context(made.run(endpoints))
        except TimeoutError:
            pytest.fail(f"the ingress is not ready:\n{made.log}")
        yield Platform(made, upstream, endpoints)


@dataclass(frozen=True)
class Answered:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def backend(self) -> str | None:
        return self.headers.get("x-meritorder-backend")

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def events(self) -> list[Any]:
        """Of a stream, as JSON, without `[DONE]`."""
        lines = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line]
        return [json.loads(line) for line in lines if line != b"[DONE]"]


async def ask(
    http: aiohttp.ClientSession, model: str, *, headers: Mapping[str, str] | None = None, **fields: Any
) -> Answered:
    """Send a chat completion, and read the whole answer."""
    body = {**chat(model), **fields}
    async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
        return Answered(response.status, response.headers.copy(), await response.read())


async def recorded(platform: Platform, answered: Answered | str) -> UsageRecord:
    """The one record of a request."""
    request_id = answered if isinstance(answered, str) else answered.request_id

    async def found() -> list[UsageRecord]:
        return platform.ingress.records([request_id])

    records: list[UsageRecord] = await eventually(found)
    [record] = records
    return record


def words(count: int) -> str:
    """A text of so many tokens, as the upstream counts them and as they are estimated: each has four bytes."""
    return "abc " * count
