"""One replica of a `Provider`: the hosted proxy inside Ray Serve."""

from collections.abc import Mapping
from typing import Any

from ray import serve

from meritorder.deployments.credentials import Credential, credential
from meritorder.deployments.hosted import HostedProxy as Proxy
from meritorder.deployments.hosted import Upstream
from meritorder.deployments.loopback import keep_to_loopback
from meritorder.deployments.plan import UNLIMITED_ONGOING_REQUESTS
from meritorder.manifests.kinds import Provider

OPENAI_URL = "https://api.openai.com/v1"


class UpstreamError(Exception):
    """There is nowhere to send requests. The message is one sentence for a person."""


@serve.ingress()
class HostedProxy:
    """Built by Serve from a manifest; the key is read here, in the replica, and only here."""

    def __init__(self, manifest: Mapping[str, Any], simulated_url: str | None = None) -> None:
        keep_to_loopback()
        self._app = Proxy(upstream(Provider.model_validate(manifest), simulated_url))

    async def __serve_build_asgi_app__(self) -> Proxy:
        return self._app


def options(provider: Provider) -> dict[str, Any]:
    """The keyword arguments of `serve.deployment`. One replica, so that `limits.concurrency` is the account's."""
    return {
        "num_replicas": 1,
        "max_ongoing_requests": UNLIMITED_ONGOING_REQUESTS,  # the proxy itself counts, and says so
        "ray_actor_options": {"num_cpus": 0},
    }


def upstream(provider: Provider, simulated_url: str | None = None) -> Upstream:
    """The account of a manifest.

    Raises:
        UpstreamError: a simulated provider, and nothing simulates it.
    """
    spec = provider.spec
    url = simulated_url if spec.type == "simulated" else spec.base_url or OPENAI_URL
    if not url:
        raise UpstreamError(f"provider {provider.name!r} is simulated, and no simulated upstream runs")
    return Upstream(
        name=provider.name,
        base_url=url.rstrip("/"),
        credential=credential(spec.credentials) if spec.credentials else Credential.simulated(),
        concurrency=spec.limits.concurrency,
    )
