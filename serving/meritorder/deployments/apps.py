"""The import paths of a Serve config: builders of one application from one manifest."""

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from meritorder.deployments.plan import plan
from meritorder.manifests.kinds import Model, Provider


def model_app(args: Mapping[str, Any]) -> Application:
    """`args` is `{"manifest": <Model as JSON>}`."""
    from meritorder.deployments.engine import Engine

    planned = plan(Model.model_validate(args["manifest"]))
    deployment: Any = serve.deployment(Engine, name="engine", **planned.options)
    application: Application = deployment.bind(
        llm_config=dict(planned.llm_config), environment=dict(planned.environment)
    )
    return application


def provider_app(args: Mapping[str, Any]) -> Application:
    """`args` is `{"manifest": <Provider as JSON>, "simulated_url": <base URL, for type simulated only>}`."""
    from meritorder.deployments.hosted_replica import HostedProxy, options

    provider = Provider.model_validate(args["manifest"])
    deployment: Any = serve.deployment(HostedProxy, name="proxy", **options(provider))
    application: Application = deployment.bind(manifest=dict(args["manifest"]), simulated_url=args.get("simulated_url"))
    return application
