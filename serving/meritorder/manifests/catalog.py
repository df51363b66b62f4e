"""From manifests to a `Catalog`: every reference resolved, or named as a problem."""

from collections.abc import Iterable, Mapping, Sequence

from meritorder.core.catalog import Backend, Catalog, Tier
from meritorder.core.catalog import Route as CoreRoute
from meritorder.core.catalog import Team as CoreTeam
from meritorder.core.money import FREE, Price
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.kinds import HostedModel, Model, Provider, Route, Team
from meritorder.manifests.messages import did_you_mean
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
    routes |= {name: CoreRoute(name, (name,)) for name in backends}
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
        for index in _repeated(names):
            loc = ("spec", "models", index, "name")
            problems.append(written.document.problem(loc, f"{names[index]!r} is listed twice"))
        yield from (_hosted(provider, hosted) for hosted in provider.spec.models)


def _self_run(model: Model) -> Backend:
    sequences = model.spec.engine_args.get("max_num_seqs", VLLM_DEFAULT_MAX_NUM_SEQS)
    return Backend(
        name=model.name,
        tier=Tier.SELF_RUN,
        application=model_application(model),
        upstream_model=model.name,
        endpoints=model.spec.capabilities.endpoints,
        price=FREE,
        concurrency=sequences * model.spec.scaling.min_replicas,
    )


def _hosted(provider: Provider, hosted: HostedModel) -> Backend:
    sheet = hosted.price
    return Backend(
        name=f"{provider.name}/{hosted.name}",
        tier=Tier.HOSTED,
        application=provider_application(provider),
        upstream_model=hosted.upstream_name or hosted.name,
        endpoints=hosted.capabilities.endpoints,
        price=Price(sheet.input, sheet.output, sheet.cached_input),
        concurrency=provider.spec.limits.concurrency,
    )


def _routes(manifests: ManifestSet, backends: Mapping[str, Backend], problems: list[Problem]) -> Iterable[CoreRoute]:
    for written in manifests.of("Route"):
        route = written.manifest
        assert isinstance(route, Route)
        if route.name in backends:
            message = f"{route.name!r} is the name of a Model, too; choose another name for the Route"
            problems.append(written.document.problem(("metadata", "name"), message))
        candidates = [candidate.backend for candidate in route.spec.candidates]
        problems += (
            written.document.problem(_candidate_loc(route, index), f"{candidates[index]!r} is listed twice")
            for index in _repeated(candidates)
        )
        problems += (
            written.document.problem(_candidate_loc(route, index), _no_backend(name, backends))
            for index, name in enumerate(candidates)
            if name not in backends
        )
        yield CoreRoute(route.name, tuple(candidates))


def _teams(manifests: ManifestSet, routes: Mapping[str, CoreRoute], problems: list[Problem]) -> Iterable[CoreTeam]:
    for written in manifests.of("Team"):
        team = written.manifest
        assert isinstance(team, Team)
        allowed = team.spec.routes
        for index, name in enumerate(allowed or ()):
            if name not in routes:
                loc = ("spec", "routes", index)
                problems.append(written.document.problem(loc, _unknown("Route or model", name, routes)))
        yield CoreTeam(team.name, None if allowed is None else frozenset(allowed))


def _repeated(names: Sequence[str]) -> Iterable[int]:
    return (index for index, name in enumerate(names) if name in names[:index])


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
