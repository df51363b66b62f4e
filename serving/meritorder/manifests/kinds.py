"""`Model`, `Provider`, `Route` and `Team` of `meritorder.dev/v1alpha1`.

References from one manifest to another are checked in `catalog`, where all of them are known.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from meritorder.core.catalog import Endpoint
from meritorder.manifests.fields import Count, HttpUrl, ModelName, Money, Name, Source, Strict, misplaced

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
    """What a model can do; a request that needs more is not sent to it."""

    endpoints: frozenset[Endpoint] = Field(default=CHAT_ENDPOINTS, min_length=1)


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
    """`engineArgs` are vLLM's own, in its spelling (`max_model_len`); vLLM checks them."""

    source: Source
    engine_args: Mapping[str, Any] = Field(default_factory=dict)
    resources: Resources = Resources()
    capabilities: Capabilities = Capabilities()
    scaling: Scaling = Scaling()

    @field_validator("engine_args")
    @classmethod
    def _sequences_are_countable(cls, args: Mapping[str, Any]) -> Mapping[str, Any]:
        # The only engine argument that routing reads: it says when a replica is full.
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
    """What the account allows. `concurrency` is requests at once; further ones go to the next candidate."""

    concurrency: Count = 64


class PriceSheet(Strict):
    """US dollars per million tokens. There is no default: an unknown price is not a price of zero."""

    input: Money
    output: Money
    cached_input: Money | None = None


class HostedModel(Strict):
    """One model of a provider, called `<provider>/<name>`; `upstreamName` is what the provider calls it."""

    name: ModelName
    upstream_name: ModelName | None = None
    capabilities: Capabilities = Capabilities()
    price: PriceSheet


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


HostedName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9-]+/.+$",
        description="the name of a hosted model, PROVIDER/MODEL, such as openai/gpt-5",
    ),
]


class Candidate(Strict):
    """Exactly one of a self-run model's name, and a hosted model as `<provider>/<model>`."""

    model: Name | None = None
    provider: HostedName | None = None

    @model_validator(mode="after")
    def _one_backend(self) -> Self:
        if (self.model is None) == (self.provider is None):
            raise ValueError("give exactly one of model: NAME and provider: PROVIDER/MODEL")
        return self

    @property
    def backend(self) -> str:
        return self.model or self.provider or ""


class RouteSpec(Strict):
    """`candidates` are in order of preference: the next takes what the one before cannot."""

    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1)]


class Route(Kind):
    """A public model name."""

    kind: Literal["Route"]
    spec: RouteSpec


class TeamSpec(Strict):
    """`routes` are the names that the team may call; left out, all of them."""

    routes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class Team(Kind):
    """Who calls, and who pays."""

    kind: Literal["Team"]
    spec: TeamSpec = TeamSpec()


Manifest = Model | Provider | Route | Team
KINDS: Mapping[str, type[Model] | type[Provider] | type[Route] | type[Team]] = {
    kind.__name__: kind for kind in (Model, Provider, Route, Team)
}
