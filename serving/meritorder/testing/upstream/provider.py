"""The simulated provider: from a request to the behaviour that the script has for it."""

import asyncio
import hmac
from contextlib import suppress
from functools import partial
from typing import Any

from aiohttp import web

from meritorder.testing.upstream.clock import Clock
from meritorder.testing.upstream.errors import ApiError, missing_key, unknown_model, unknown_url, wrong_key
from meritorder.testing.upstream.exchange import Exchange
from meritorder.testing.upstream.log import ReceivedRequest, RequestLog
from meritorder.testing.upstream.parsing import model_of, parse_body
from meritorder.testing.upstream.playbook import Pacer, Playbook
from meritorder.testing.upstream.playing import play
from meritorder.testing.upstream.replies import make_reply, parse_request
from meritorder.testing.upstream.script import Endpoint

# Long prompts with images are bigger than aiohttp's limit of 1 MiB.
MAX_BODY_BYTES = 64 * 1024 * 1024


class SimulatedProvider:
    """Answers OpenAI's endpoints for some models, as a playbook says, and logs each request."""

    def __init__(
        self, models: tuple[str, ...], api_key: str | None, playbook: Playbook, log: RequestLog, clock: Clock
    ) -> None:
        self._models = models
        self._api_key = api_key
        self._playbook = playbook
        self._log = log
        self._clock = clock
        self._running: set[asyncio.Task[Any]] = set()

    def add_routes(self, app: web.Application) -> None:
        """Add the provider's endpoints, and OpenAI's answer to requests for any other."""
        app.router.add_post("/v1/chat/completions", partial(self._handle, "chat"))
        app.router.add_post("/v1/completions", partial(self._handle, "completions"))
        app.router.add_post("/v1/embeddings", partial(self._handle, "embeddings"))
        app.router.add_get("/v1/models", partial(self._handle, "models"), allow_head=False)
        app.router.add_get("/healthz", _healthz)
        app.router.add_route("*", "/{path:.*}", _unknown_url)

    async def stop(self, _: web.Application) -> None:
        """Break off running answers: without this, one that hangs would hold up the shutdown."""
        for task in self._running:
            task.cancel()

    async def _handle(self, endpoint: Endpoint, request: web.Request) -> web.StreamResponse:
        """Answer one request and log its end, whichever way it comes."""
        names = tuple(name.lower() for name in request.headers)
        entry = self._log.open(request.method, request.path, endpoint, names)
        exchange = Exchange(request, entry, self._log)
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            try:
                await self._respond(exchange, entry, request)
            except ApiError as error:
                await exchange.send_error(error)
        except ConnectionError:
            self._log.close(entry, "client_disconnected")
        except asyncio.CancelledError:
            self._log.close(entry, "client_disconnected" if exchange.client_gone else "failed")
            raise
        finally:
            self._running.discard(task)
            self._log.close(entry, "failed")
        return exchange.response

    async def _respond(self, exchange: Exchange, entry: ReceivedRequest, request: web.Request) -> None:
        """Check the request as OpenAI would, and only then let it meet the script."""
        refusal = self._check_key(request)
        entry.key_accepted = refusal is None
        raw = await _read(request)
        if refusal is not None:
            with suppress(ApiError):
                entry.body = parse_body(raw)
            raise refusal
        if entry.endpoint != "models":
            entry.body = parse_body(raw)
            entry.model = model_of(entry.body)
            if entry.model not in self._models:
                raise unknown_model(entry.model)
        wanted = parse_request(entry.endpoint, entry.body, self._models)
        turn = self._playbook.meet(entry.endpoint, entry.model, _user_of(entry.body))
        with turn.gate.admit() as limit_headers:
            exchange.add_headers(limit_headers)
            reply = make_reply(wanted, turn.behaviour, entry.id, int(self._clock.unix_time()))
            entry.prompt_tokens, entry.cached_tokens = reply.counted.prompt_tokens, reply.counted.cached_tokens
            await play(exchange, turn.behaviour, Pacer(turn, self._clock, entry.started_s), reply)

    def _check_key(self, request: web.Request) -> ApiError | None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return missing_key()
        # Header text holds surrogates where the client sent bytes that are not UTF-8.
        given = key.strip().encode("utf-8", "surrogateescape")
        if self._api_key is not None and not hmac.compare_digest(given, self._api_key.encode()):
            return wrong_key()
        return None


async def _read(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise ApiError(413, f"The body of your request is longer than {MAX_BODY_BYTES} bytes.") from None
    except web.RequestPayloadError:
        raise ApiError(400, "The body of your request could not be decoded.") from None


def _user_of(body: Any) -> str | None:
    user = body.get("user") if isinstance(body, dict) else None
    return user if isinstance(user, str) else None


async def _healthz(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "simulated": True}, headers={"x-simulated": "true"})


async def _unknown_url(request: web.Request) -> web.Response:
    error = unknown_url(request.method, request.path)
    headers = {"x-simulated": "true"}
    return web.Response(status=404, body=error.body(), headers=headers, content_type="application/json")
