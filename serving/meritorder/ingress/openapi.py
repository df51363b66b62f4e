"""The description of the ingress for programs, at /openapi.json. What it says is in openapi.yaml beside this."""

from importlib import resources
from typing import Any

import msgspec
import yaml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meritorder import __version__


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    text = resources.files(__package__).joinpath("openapi.yaml").read_text()
    read: dict[str, Any] = yaml.safe_load(text)
    read["info"]["version"] = __version__
    return read


def openapi_route() -> Route:
    """Serves the document to everyone; it has no secrets."""
    body = msgspec.json.encode(document())

    async def answer(request: Request) -> Response:
        return Response(body, media_type="application/json")

    return Route("/openapi.json", answer)
