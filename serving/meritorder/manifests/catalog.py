"""From manifests to a `Catalog`: every reference resolved, or named as a problem."""

from collections.abc import Iterable, Mapping

from meritorder.core import catalog as core
from meritorder.core.catalog import Backend, Catalog, Tier
from meritorder.core.limits import Budget, Limits
from meritorder.core.pricing import FREE
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.kinds import Capabilities, HostedModel, Model, Provider, Route, Team
from meritorder.manifests.messages import did_you_mean
from meritorder.manifests.prices import catalogue_price
from meritorder.manifests.route import Objective, Split, repeated
from meritorder.manifests.yaml_source import Loc, ManifestError, Problem

VLLM_DEFAULT_MAX_NUM_SEQS = 256
"""How many sequences vLLM decodes together where the manifest does not say (vLLM, `SchedulerConfig`)."""


def catalog(manifests: ManifestSet, generation: int = 0) -> Catalog:
    """Resolve `manifests`.

    Raises:
        ManifestError: a reference that leads nowhere, or one public name that means two things.
    """
    problems: list[Problem] = []
    backends = {backend.name: backend for backend in _backends(manifests, problems)}
    # A concrete model name is always callable, too: a route with one candidate.
    routes = {route.name: route for route in _routes(manifests, backends, problems)}
    routes |= {name: core.Route(name, (core.Candidate(name),)) for name in backends}
    teams = {team.name: team for team in _teams(manifests, routes, problems)}
    if problems:
        raise ManifestError(problems)
    return Catalog(backends, routes, teams, generation)


def model_application(model: Model) -> str:
    """The name of the Ray Serve application that serves `model`."""
    return f"model-{model.name}"


def provider_application(provider: Provider) -> str:
    """The name of the Ray Serve application that speaks to `provider`."""
    return f"provider-{provider.name}"


def _backends(manifests: ManifestSet, problems: list[Problem]) -> Iterable[Backend]:
    for model in manifests.models:
        yield _self_run(model)
    for written in manifests.of("Provider"):
        provider = written.manifest
        assert isinstance(provider, Provider)
        names = [hosted.name for hosted in provider.spec.models]
        for index in repeated(names):
            loc = ("spec", "models", index, "name")
            problems.append(written.document.problem(loc, f"{names[index]!r} is listed twice"))
        yield from (_hosted(provider, hosted) for hosted in provider.spec.models)


def _self_run(model: Model) -> Backend:
    spec = model.spec
    sequences = spec.engine_args.get("max_num_seqs", VLLM_DEFAULT_MAX_NUM_SEQS)
    return Backend(
        name=model.name,
        tier=Tier.SELF_RUN,
        application=model_application(model),
        upstream_model=model.name,
        capabilities=_capabilities(
            spec.capabilities,
            context_window=spec.max_model_len,
            # vLLM refuses tools that the model may choose to call, unless it is told how to parse the calls.
            tools=spec.engine_args.get("enable_auto_tool_choice") is True,
        ),
        price=FREE,
        concurrency=sequences * spec.scaling.min_replicas,
        replica_hour_price=spec.replica_hour_price,
        replica_concurrency=sequences,
    )


def _hosted(provider: Provider, hosted: HostedModel) -> Backend:
    upstream_model = hosted.upstream_name or hosted.name
    limits = provider.spec.limits
    return Backend(
        name=f"{provider.name}/{hosted.name}",
        tier=Tier.HOSTED,
        application=provider_application(provider),
        upstream_model=upstream_model,
        capabilities=_capabilities(hosted.capabilities, context_window=None, tools=True),
        price=hosted.price.to_price() if hosted.price else catalogue_price(provider.spec.type, upstream_model),
        concurrency=limits.concurrency,
        limits=Limits(limits.rpm, limits.tpm, limits.concurrency),
    )


def _capabilities(written: Capabilities, *, context_window: int | None, tools: bool) -> core.Capabilities:
    """`context_window` and `tools` are what holds where the manifest does not say."""
    return core.Capabilities(
        endpoints=written.endpoints,
        context_window=written.context_window or context_window,
        max_output_tokens=written.max_output_tokens,
        modalities=written.modalities,
        tools=tools if written.tools is None else written.tools,
        structured_output=written.structured_output,
    )


def _routes(manifests: ManifestSet, backends: Mapping[str, Backend], problems: list[Problem]) -> Iterable[core.Route]:
    for written in manifests.of("Route"):
        route = written.manifest
        assert isinstance(route, Route)
        if route.name in backends:
            message = f"{route.name!r} is the name of a Model, too; choose another name for the Route"
            problems.append(written.document.problem(("metadata", "name"), message))
        names = [candidate.backend for candidate in route.spec.candidates]
        problems += (
            written.document.problem(_candidate_loc(route, index), f"{names[index]!r} is listed twice")
            for index in repeated(names)
        )
        problems += (
            written.document.problem(_candidate_loc(route, index), _no_backend(name, backends))
            for index, name in enumerate(names)
            if name not in backends
        )
        yield _route(route)


def _route(route: Route) -> core.Route:
    spec = route.spec
    return core.Route(
        name=route.name,
        candidates=tuple(core.Candidate(each.backend, each.quality) for each in spec.candidates),
        objective=_objective(spec.objective),
        split=_split(spec.split) if spec.split else None,
        hedge=core.Hedge(spec.hedge.max_share) if spec.hedge else None,
        affinity=spec.affinity,
        retries=spec.retries,
    )


def _objective(written: Objective) -> core.Objective:
    lateness_cost = core.Objective().lateness_cost if written.lateness_cost is None else float(written.lateness_cost)
    return core.Objective(
        quality_floor=written.quality_floor,
        quality_worth=float(written.quality_worth),
        ttft_slo=written.ttft_slo,
        lateness_cost=lateness_cost,
        timeout=written.timeout,
    )


def _split(written: Split) -> core.Split:
    arms = (core.Arm(arm.name, arm.weight, frozenset(arm.candidates)) for arm in written.arms)
    return core.Split(written.sticky_by, tuple(arms))


def _teams(manifests: ManifestSet, routes: Mapping[str, core.Route], problems: list[Problem]) -> Iterable[core.Team]:
    for written in manifests.of("Team"):
        team = written.manifest
        assert isinstance(team, Team)
        allowed = team.spec.routes
        for index, name in enumerate(allowed or ()):
            if name not in routes:
                loc = ("spec", "routes", index)
                problems.append(written.document.problem(loc, _unknown("Route or model", name, routes)))
        yield _team(team)


def _team(team: Team) -> core.Team:
    spec = team.spec
    return core.Team(
        name=team.name,
        routes=None if spec.routes is None else frozenset(spec.routes),
        limits=Limits(spec.limits.rpm, spec.limits.tpm, spec.limits.concurrency),
        budgets=tuple(Budget(budget.period, budget.amount) for budget in spec.budgets),
        overrides=frozenset(core.Override[override.name] for override in spec.overrides),
    )


def _candidate_loc(route: Route, index: int) -> Loc:
    written_as = "model" if route.spec.candidates[index].model else "provider"
    return ("spec", "candidates", index, written_as)


def _no_backend(name: str, backends: Iterable[str]) -> str:
    hosted = "/" in name
    alike = [other for other in backends if ("/" in other) == hosted]
    return _unknown("model of a Provider" if hosted else "Model", name, alike)


def _unknown(what: str, name: str, valid: Iterable[str]) -> str:
    known = sorted(valid)
    return f"there is no {what} {name!r}{did_you_mean(name, known)}; defined: {', '.join(known) or 'none'}"
