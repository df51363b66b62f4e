"""`Model`, `Provider`, `Route` and `Team` of `meritorder.dev/v1alpha1`.

References from one manifest to another are checked in `catalog`, where all of them are known.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, field_validator, model_validator

from meritorder.core.catalog import Endpoint, Modality
from meritorder.core.limits import Period
from meritorder.manifests.fields import (
    Amount,
    Count,
    HttpUrl,
    ModelName,
    Money,
    Name,
    Source,
    Strict,
    Tokens,
    misplaced,
)
from meritorder.manifests.prices import PriceSheetSpec
from meritorder.manifests.route import RouteSpec, repeated

CHAT_ENDPOINTS = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS})


class Metadata(Strict):
    """The part of Kubernetes' object metadata that means something outside a cluster, too."""

    name: Name
    namespace: str | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)


class Kind(Strict):
    """What the four kinds share."""

    api_version: Literal["meritorder.dev/v1alpha1"]
    metadata: Metadata

    @property
    def name(self) -> str:
        return self.metadata.name


class Capabilities(Strict):
    """What a model can do; a request that needs more is not sent to it.

    What `contextWindow`, `maxOutputTokens` and `tools` are where they are left out, `catalog` says.
    """

    endpoints: frozenset[Endpoint] = Field(default=CHAT_ENDPOINTS, min_length=1)
    context_window: Tokens | None = None
    max_output_tokens: Tokens | None = None
    modalities: frozenset[Modality] = frozenset()
    tools: StrictBool | None = None
    structured_output: StrictBool = True

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        if self.context_window and self.max_output_tokens and self.max_output_tokens > self.context_window:
            message = f"must not be above contextWindow, and {self.max_output_tokens} is above {self.context_window}"
            raise misplaced("maxOutputTokens", message)
        return self


class Gpu(Strict):
    """The GPUs of one replica. `type` is Ray's accelerator type, such as `L4`, `A100-80G` or `H100`."""

    type: Annotated[str, Field(min_length=1, description="an accelerator type of Ray, such as L4")]
    count: Count = 1


class Resources(Strict):
    """What one replica occupies. Without `gpu` the model runs on the CPU.

    `tensorParallel` is the number of GPUs that share each layer; by default all of `gpu.count`. Where it is
    fewer, the GPUs left over become pipeline stages.
    """

    gpu: Gpu | None = None
    cpu: Count = 1
    tensor_parallel: Count | None = None

    @model_validator(mode="after")
    def _parallelism_fits(self) -> Self:
        gpus = self.gpu.count if self.gpu else 1
        if self.tensor_parallel and gpus % self.tensor_parallel:
            message = f"must divide gpu.count, and {self.tensor_parallel} does not divide {gpus}"
            raise misplaced("tensorParallel", message)
        return self


class Scaling(Strict):
    """How many replicas run."""

    min_replicas: Count = 1


SAID_ELSEWHERE = {
    "model": "spec.source",
    "revision": "spec.source, as hf://organisation/name@revision,",
    "served_model_name": "metadata.name",
    "tensor_parallel_size": "spec.resources.tensorParallel",
    "pipeline_parallel_size": "spec.resources.gpu.count",
}
"""Engine arguments that other fields of a Model determine."""


class ModelSpec(Strict):
    """`engineArgs` are vLLM's own, in its spelling (`max_model_len`); vLLM checks them.

    `replicaHourPrice` is what a replica costs per hour, whether it works or not.
    """

    source: Source
    engine_args: Mapping[str, Any] = Field(default_factory=dict)
    resources: Resources = Resources()
    replica_hour_price: Money | None = None
    capabilities: Capabilities = Capabilities()
    scaling: Scaling = Scaling()

    @field_validator("engine_args")
    @classmethod
    def _sequences_are_countable(cls, args: Mapping[str, Any]) -> Mapping[str, Any]:
        # Routing reads it: it says when a replica is full.
        sequences = args.get("max_num_seqs", 1)
        if not isinstance(sequences, int) or isinstance(sequences, bool) or sequences < 1:
            raise misplaced("max_num_seqs", "expected a whole number of at least 1")
        return args

    @field_validator("engine_args")
    @classmethod
    def _nothing_is_said_twice(cls, args: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, field in SAID_ELSEWHERE.items():
            if name in args:
                raise misplaced(name, f"set {field} instead")
        return args

    @model_validator(mode="after")
    def _the_engine_is_as_capable(self) -> Self:
        longest, written = self.max_model_len, self.capabilities
        for field, count in (("contextWindow", written.context_window), ("maxOutputTokens", written.max_output_tokens)):
            if longest and count and count > longest:
                message = f"must not be above engineArgs.max_model_len, and {count} is above {longest}"
                raise misplaced(("capabilities", field), message)
        return self

    @property
    def max_model_len(self) -> int | None:
        """The engine argument in tokens; None where vLLM decides, which is left out, -1 and auto."""
        longest = self.engine_args.get("max_model_len")
        return longest if isinstance(longest, int) and not isinstance(longest, bool) and longest > 0 else None


class Model(Kind):
    """A self-run open model."""

    kind: Literal["Model"]
    spec: ModelSpec


class SecretRef(Strict):
    """A key of a Kubernetes Secret, mounted as a file into the provider's replicas."""

    name: Name
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", description="a key of the Secret, such as api-key")]


EnvironmentVariable = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the name of an environment variable, such as OPENAI_API_KEY",
    ),
]


class Credentials(Strict):
    """Exactly one place where the replica finds the provider's key. The key is never in a manifest."""

    env: EnvironmentVariable | None = None
    file: Annotated[str, Field(min_length=1, description="the path of a file")] | None = None
    secret_ref: SecretRef | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.env, self.file, self.secret_ref)) != 1:
            raise ValueError("give exactly one of env: NAME, file: PATH and secretRef: {name: N, key: K}")
        return self


class ProviderLimits(Strict):
    """What the account allows: requests and tokens per minute, and requests at once. More go to the next candidate."""

    rpm: Count | None = None
    tpm: Tokens | None = None
    concurrency: Count = 64


class HostedModel(Strict):
    """One model of a provider, called `<provider>/<name>`; `upstreamName` is what the provider calls it.

    Without `price` it has that of the price catalogue, if the model is in it, and otherwise none.
    """

    name: ModelName
    upstream_name: ModelName | None = None
    capabilities: Capabilities = Capabilities()
    price: PriceSheetSpec | None = None


class ProviderSpec(Strict):
    """An account and what it can call.

    `openai-compatible` is any URL that speaks OpenAI's format; `simulated` is a stand-in that `meritorder up`
    starts on this machine, so that everything can be tried without an account.
    """

    type: Literal["openai", "openai-compatible", "simulated"]
    base_url: HttpUrl | None = Field(default=None, alias="baseURL")
    credentials: Credentials | None = None
    limits: ProviderLimits = ProviderLimits()
    models: Annotated[tuple[HostedModel, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.type == "simulated":
            for field, given in (("baseURL", self.base_url), ("credentials", self.credentials)):
                if given is not None:
                    raise misplaced(field, f"a simulated provider has no {field}; remove it")
        elif self.credentials is None:
            example = "{env: NAME}, {file: PATH} or {secretRef: {name: N, key: K}}"
            raise misplaced("credentials", f"this field is required for the type {self.type}: {example}")
        if self.type == "openai-compatible" and self.base_url is None:
            example = "the URL below which the API answers, such as https://api.example.com/v1"
            raise misplaced("baseURL", f"this field is required for the type {self.type}: {example}")
        return self


class Provider(Kind):
    """An account at a hosted API."""

    kind: Literal["Provider"]
    spec: ProviderSpec


class Route(Kind):
    """A public model name."""

    kind: Literal["Route"]
    spec: RouteSpec


class Budget(Strict):
    """US dollars that may be spent in each calendar period, in UTC."""

    period: Period
    amount: Amount


class TeamLimits(Strict):
    """Requests and tokens per minute, and requests at once."""

    rpm: Count | None = None
    tpm: Tokens | None = None
    concurrency: Count | None = None


class OverrideName(StrEnum):
    """What a request may ask of the routing, in camelCase; the names are those of `core.catalog.Override`."""

    MAX_COST = "maxCost"
    MAX_TTFT = "maxTTFT"
    MIN_QUALITY = "minQuality"
    BACKEND = "backend"
    EXCLUDE = "exclude"


class TeamSpec(Strict):
    """`routes` are the names that the team may call, and `overrides` what its requests may ask; left out, all."""

    routes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    budgets: tuple[Budget, ...] = ()
    limits: TeamLimits = TeamLimits()
    overrides: frozenset[OverrideName] = frozenset(OverrideName)

    @model_validator(mode="after")
    def _one_budget_per_period(self) -> Self:
        periods = [budget.period.value for budget in self.budgets]
        for index in repeated(periods):
            raise misplaced(("budgets", index, "period"), f"{periods[index]!r} is listed twice")
        return self


class Team(Kind):
    """Who calls, and who pays."""

    kind: Literal["Team"]
    spec: TeamSpec = TeamSpec()


Manifest = Model | Provider | Route | Team
KINDS: Mapping[str, type[Model] | type[Provider] | type[Route] | type[Team]] = {
    kind.__name__: kind for kind in (Model, Provider, Route, Team)
}
