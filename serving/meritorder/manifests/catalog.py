"""From manifests to a `Catalog`: every reference resolved, or named as a problem."""

import difflib
from collections.abc import Iterable, Mapping

from meritorder.core.catalog import Backend, Catalog, Tier
from meritorder.core.catalog import Route as CoreRoute
from meritorder.core.catalog import Team as CoreTeam
from meritorder.core.money import FREE, Price
from meritorder.manifests.folder import ManifestSet
from meritorder.manifests.kinds import HostedModel, Model, Provider, Route, Team
from meritorder.manifests.yaml_source import ManifestError, Problem

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
        seen: set[str] = set()
        for index, hosted in enumerate(provider.spec.models):
            if hosted.name in seen:
                loc = ("spec", "models", index, "name")
                problems.append(written.document.problem(loc, f"{hosted.name!r} is listed twice"))
            seen.add(hosted.name)
            yield _hosted(provider, hosted)


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


def _routes(
    manifests: ManifestSet, backends: Mapping[str, Backend], problems: list[Problem]
) -> Iterable[CoreRoute]:
    for written in manifests.of("Route"):
        route = written.manifest
        assert isinstance(route, Route)
        if route.name in backends:
            problems.append(
                written.document.problem(
                    ("metadata", "name"),
                    f"{route.name!r} is already the name of a Model; a Route is a public name of its own, choose another",
                )
            )
        for index, candidate in enumerate(route.spec.candidates):
            if candidate.backend not in backends:
                loc = ("spec", "candidates", index, "model" if candidate.model else "provider")
                wanted = [name for name in backends if ("/" in name) == (candidate.provider is not None)]
                problems.append(written.document.problem(loc, _unknown("backend", candidate.backend, wanted)))
        yield CoreRoute(route.name, tuple(candidate.backend for candidate in route.spec.candidates))


def _teams(
    manifests: ManifestSet, routes: Mapping[str, CoreRoute], problems: list[Problem]
) -> Iterable[CoreTeam]:
    for written in manifests.of("Team"):
        team = written.manifest
        assert isinstance(team, Team)
        allowed = team.spec.routes
        for index, name in enumerate(allowed or ()):
            if name not in routes:
                loc = ("spec", "routes", index)
                problems.append(written.document.problem(loc, _unknown("route", name, routes)))
        yield CoreTeam(team.name, None if allowed is None else frozenset(allowed))


def _unknown(what: str, name: str, valid: Iterable[str]) -> str:
    known = sorted(valid)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"there is no {what} {name!r}{hint}; defined: {', '.join(known) or 'none'}"
