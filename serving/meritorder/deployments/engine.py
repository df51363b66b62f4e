"""One replica of a `Model`: a vLLM engine whose own HTTP application answers.

`ray.serve.llm` is imported in the replica and nowhere else. HAProxy sends requests straight to the
replica, to the one with the fewest, so no router of `ray.serve.llm` stands between: its deployment would cost
one more process and one more hop for each request.
"""

import os
from collections.abc import Mapping
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from meritorder.deployments.loopback import keep_to_loopback
from meritorder.deployments.sources import check_folder


@serve.ingress()
class Engine:
    """Built by Serve from the fields of a `ModelPlan`."""

    async def __init__(self, llm_config: Mapping[str, Any], environment: Mapping[str, str]) -> None:  # type: ignore[misc]
        # Serve awaits a constructor that is a coroutine.
        keep_to_loopback()
        source = llm_config["model_loading_config"]["model_source"]
        if source.startswith("/"):
            check_folder(source)
        # Before vLLM is imported: it and the engine processes that it starts read these once.
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        from meritorder.deployments.llm_server import start_server

        self._server: Any = await start_server(llm_config)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        app: ASGIApp = await self._server.__serve_build_asgi_app__()
        return app

    async def check_health(self) -> None:
        """Raises when the engine is dead, upon which Serve replaces the replica."""
        await self._server.check_health()
