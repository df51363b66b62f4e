"""The hosted proxy: an ASGI application that speaks to one provider with that provider's key.

OpenAI's format goes in and out, byte for byte: nothing is parsed, so unknown fields survive. It knows neither
prices nor fallbacks nor limits of size, which are the ingress's, and needs no Ray.

Nor does it know who calls: whoever reaches it spends the provider's key, with no team and no record. On a cluster
a NetworkPolicy must admit the ingress alone. On one machine it listens on loopback, where every user and
process of that machine can call `http://127.0.0.1:PORT/providers/NAME/v1`: run it where you trust them all.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import aiohttp
from starlette.types import Receive, Scope, Send
from yarl import URL

from meritorder.deployments.asgi import ClientGone, Refusal, disconnected, read_body, send_error, send_whole
from meritorder.deployments.credentials import Credential, CredentialError
from meritorder.deployments.egress import proxy_for
from meritorder.deployments.hosted_headers import Headers, request_headers, response_headers

CONNECT_TIMEOUT = 10.0
"""Seconds to connect to the provider, TLS included."""

SILENCE_TIMEOUT = 600.0
"""Seconds between two pieces of an answer; a reasoning model may think for minutes before the first."""

KEEP_ALIVE = 30.0
"""Seconds that an idle connection is kept; below what providers allow, so that we are the one who closes it."""

SLOT_TIMEOUT = 0.25
"""Seconds to wait for one of `limits.concurrency` slots: a request just cancelled needs a moment to free its."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A provider's account. `base_url` ends where `/chat/completions` begins; `concurrency` is requests at once."""

    name: str
    base_url: str
    credential: Credential | None
    concurrency: int

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).netloc


class HostedProxy:
    """`POST /v1/*` and `GET /v1/models` to the provider; `GET /health` answers 200 here.

    A client that leaves, before or during the answer, cancels the request at the provider. An answer that
    breaks off at the provider breaks off at the client, too: it is never ended as if it were complete.
    """

    def __init__(self, upstream: Upstream) -> None:
        """Raises CredentialError when the key is missing."""
        self._upstream = upstream
        self._base = urlsplit(upstream.base_url)
        self._egress = proxy_for(upstream.base_url)
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(upstream.concurrency)
        if upstream.credential:
            upstream.credential.authorization()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"the hosted proxy does not speak {scope['type']}")
        try:
            await self._respond(scope, receive, send)
        except Refusal as refusal:
            await send_error(refusal, send)
        except ClientGone:
            return

    async def startup(self) -> None:
        """Open the connection pool, in the loop that will use it."""
        connector = aiohttp.TCPConnector(
            limit=self._upstream.concurrency, keepalive_timeout=KEEP_ALIVE, ttl_dns_cache=60
        )
        timeout = aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=CONNECT_TIMEOUT, sock_read=SILENCE_TIMEOUT
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept", "Content-Type"),
        )

    async def shutdown(self) -> None:
        if self._session:
            await self._session.close()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        if path == "/health" and method == "GET":
            await send_whole(200, b'{"status":"ok"}', [(b"content-type", b"application/json")], send)
            return
        url = self._url(method, path, scope["query_string"])
        headers = request_headers(scope["headers"], self._authorization())
        body = await read_body(receive)
        exchange = asyncio.ensure_future(self._exchange(method, url, headers, body, send))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((exchange, gone), return_when=asyncio.FIRST_COMPLETED)
            if exchange.done():
                exchange.result()
        finally:
            for task in (exchange, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await exchange  # until the connection to the provider is closed

    async def _exchange(self, method: str, url: URL, headers: Headers, body: bytes, send: Send) -> None:
        assert self._session is not None, "startup() opens the pool"
        await self._take_slot()
        started = False
        try:
            async with self._session.request(
                method, url, headers=headers, data=body or None, allow_redirects=False, proxy=self._egress
            ) as answer:
                if answer.status == 401:
                    # Providers quote parts of the key here; and it is not the client's key that is wrong.
                    raise Refusal(401, "provider_credential_refused", self._says("refused the key it was given"))
                raw = response_headers(answer.raw_headers)
                await send({"type": "http.response.start", "status": answer.status, "headers": raw})
                started = True
                async for piece in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError as error:
            if started:
                raise
            raise Refusal(504, "provider_timeout", self._says("did not answer in time")) from error
        except (aiohttp.ClientError, OSError) as error:
            if started:
                raise
            why = self._says(f"cannot be reached at {self._upstream.host} ({_reason(error)})")
            raise Refusal(502, "provider_unreachable", why) from error
        finally:
            self._slots.release()

    async def _take_slot(self) -> None:
        try:
            async with asyncio.timeout(SLOT_TIMEOUT):
                await self._slots.acquire()
        except TimeoutError:
            limit = self._upstream.concurrency
            message = self._says(f"already serves {limit} requests, the limit of its account (limits.concurrency)")
            raise Refusal(429, "provider_concurrency", message, retry_after=1) from None

    def _url(self, method: str, path: str, query: bytes) -> URL:
        allowed = {"POST": path.startswith("/v1/"), "GET": path == "/v1/models" or path.startswith("/v1/models/")}
        if not allowed.get(method) or ".." in path.split("/"):
            raise Refusal(404, "not_found", f"{method} {path} is not offered here")
        target = self._base._replace(
            path=self._base.path + quote(path.removeprefix("/v1"), safe="/:@"), query=query.decode("ascii")
        )
        return URL(target.geturl(), encoded=True)

    def _authorization(self) -> str | None:
        try:
            return self._upstream.credential.authorization() if self._upstream.credential else None
        except CredentialError as error:
            raise Refusal(503, "provider_credential_missing", self._says(f"has no key: {error}")) from None

    def _says(self, what: str) -> str:
        return f"provider {self._upstream.name!r} {what}"

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.startup()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.shutdown()
        await send({"type": "lifespan.shutdown.complete"})


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name does not resolve"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the connection was closed"
