"""The little of HTTP that the hosted proxy needs, on bare ASGI: a framework would cost it a fifth of its rate."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import Receive, Send

MAX_BODY = 64 * 1024 * 1024
"""Bytes of a request's body, which is held in memory until it is complete."""


@dataclass(eq=False)
class Refusal(Exception):
    """An answer of our own instead of the provider's, in OpenAI's error shape."""

    status: int
    code: str
    message: str
    kind: str = "api_error"
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def send(self, send: Send) -> None:
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        await send_json(self.status, {"error": error}, send, self.headers)


class ClientGone(Exception):
    """Nobody is left to answer."""


async def read_body(receive: Receive) -> bytes:
    """The whole body.

    Raises:
        ClientGone: the client left before it had sent all.
        Refusal: the body is over `MAX_BODY`.
    """
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MAX_BODY:
            raise Refusal(413, "body_too_large", f"the body is over {MAX_BODY} bytes", "invalid_request_error")
        if not message.get("more_body"):
            return b"".join(pieces)


async def disconnected(receive: Receive) -> None:
    """Return when the client has left; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_json(status: int, content: object, send: Send, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    body = json.dumps(content).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})
