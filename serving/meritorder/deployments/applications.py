"""Manifests as the applications of a Serve config: pure, without Ray.

The same entries go to the local cluster and into `serveConfigV2` on Kubernetes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meritorder.manifests.catalog import model_application, provider_application
from meritorder.manifests.kinds import Capabilities, Model, Provider, ProviderLimits

MODEL_APP = "meritorder.deployments.apps:model_app"
PROVIDER_APP = "meritorder.deployments.apps:provider_app"


def applications(
    models: Iterable[Model], providers: Iterable[Provider], *, simulated_url: str | None = None
) -> list[dict[str, Any]]:
    """One entry of a Serve config (`name`, `route_prefix`, `import_path`, `args`) per manifest, providers first.

    `args` holds what the replicas read of the manifest, as JSON, and never a key. `simulated_url` is the base URL
    for providers of type `simulated`.
    """
    return [
        *(provider_entry(provider, simulated_url=simulated_url) for provider in providers),
        *(model_entry(model) for model in models),
    ]


def model_entry(model: Model) -> dict[str, Any]:
    """The application that serves `model` below `/models/<name>`."""
    return {
        "name": model_application(model),
        "route_prefix": f"/models/{model.name}",
        "import_path": MODEL_APP,
        "args": {"manifest": _json(model)},
    }


def provider_entry(provider: Provider, *, simulated_url: str | None = None) -> dict[str, Any]:
    """The application that speaks to `provider` below `/providers/<name>`."""
    args: dict[str, Any] = {"manifest": _json(provider)}
    if provider.spec.type == "simulated" and simulated_url:
        args["simulated_url"] = simulated_url
    return {
        "name": provider_application(provider),
        "route_prefix": f"/providers/{provider.name}",
        "import_path": PROVIDER_APP,
        "args": args,
    }


def is_model(application: Mapping[str, Any]) -> bool:
    """Whether an entry made here runs vLLM."""
    return bool(application["import_path"] == MODEL_APP)


def _json(manifest: Model | Provider) -> dict[str, Any]:
    dumped: dict[str, Any] = _as_replicas_read_it(manifest).model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
    )
    return dumped


def _as_replicas_read_it(manifest: Model | Provider) -> Model | Provider:
    # Serve builds an application anew when its arguments change. What only routing reads is no part of them: a price
    # is no reason to load a model again.
    match manifest:
        case Model(spec=model):
            spec = model.model_copy(update={"capabilities": Capabilities(), "replica_hour_price": None})
            return manifest.model_copy(update={"spec": spec})
        case Provider(spec=provider):
            unread = {"capabilities": Capabilities(), "price": None}
            hosted = tuple(each.model_copy(update=unread) for each in provider.models)
            limits = ProviderLimits(concurrency=provider.limits.concurrency)
            return manifest.model_copy(
                update={"spec": provider.model_copy(update={"models": hosted, "limits": limits})}
            )
