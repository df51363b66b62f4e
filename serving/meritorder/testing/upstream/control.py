"""`/_simulated/…`: scripting and inspecting an upstream that runs in another process.

There is no key to it: the upstream holds nothing that is worth one, and by default only listens to its own
machine.

    GET, PUT, DELETE /_simulated/script      the script in force; set one; back to that of the start
    GET, DELETE      /_simulated/requests    what was received; forget it
"""

import json

from aiohttp import web

from meritorder.testing.upstream.errors import ApiError
from meritorder.testing.upstream.log import RequestLog
from meritorder.testing.upstream.playbook import Playbook
from meritorder.testing.upstream.script import ScriptError, parse_script

_HEADERS = {"x-simulated": "true"}


class ControlPlane:
    """The handlers. Setting a script starts its counts afresh."""

    def __init__(self, playbook: Playbook, log: RequestLog) -> None:
        self._playbook = playbook
        self._log = log

    def add_routes(self, app: web.Application) -> None:
        """Add the endpoints."""
        app.router.add_get("/_simulated/script", self._get_script)
        app.router.add_put("/_simulated/script", self._put_script)
        app.router.add_delete("/_simulated/script", self._reset_script)
        app.router.add_get("/_simulated/requests", self._get_requests)
        app.router.add_delete("/_simulated/requests", self._clear_requests)

    async def _get_script(self, _: web.Request) -> web.Response:
        script = self._playbook.script.model_dump(mode="json", exclude_defaults=True)
        return web.json_response(script, headers=_HEADERS)

    async def _put_script(self, request: web.Request) -> web.Response:
        try:
            script = parse_script(json.loads(await request.read()))
        except ScriptError as error:
            return _bad_script(str(error))
        except (ValueError, RecursionError):
            return _bad_script("the body is not JSON")
        self._playbook.load(script)
        return web.json_response({"rules": len(script.rules)}, headers=_HEADERS)

    async def _reset_script(self, _: web.Request) -> web.Response:
        self._playbook.reset()
        return web.Response(status=204, headers=_HEADERS)

    async def _get_requests(self, _: web.Request) -> web.Response:
        requests = [entry.as_json() for entry in self._log.requests]
        return web.json_response({"now_s": self._log.clock.monotonic(), "requests": requests}, headers=_HEADERS)

    async def _clear_requests(self, _: web.Request) -> web.Response:
        self._log.clear()
        return web.Response(status=204, headers=_HEADERS)


def _bad_script(message: str) -> web.Response:
    field, colon, _ = message.partition(":")
    error = ApiError(400, message, param=field if colon else None, code="invalid_script")
    return web.Response(status=400, body=error.body(), headers=_HEADERS, content_type="application/json")
