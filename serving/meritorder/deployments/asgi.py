"""The little of HTTP that the hosted proxy needs, on bare ASGI: a framework would cost it a fifth of its rate."""

from collections.abc import Iterable

from starlette.types import Receive, Send

from meritorder.core.errors import RequestError
from meritorder.wire import errors


class Refusal(RequestError):
    """An answer of our own instead of the provider's."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, code=code, retry_after=retry_after)
        self.status = status


class ClientGone(Exception):
    """Nobody is left to answer."""


async def read_body(receive: Receive) -> bytes:
    """The whole body, of any size: it is the ingress that limits it.

    Raises:
        ClientGone: the client left before it had sent all.
    """
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


async def disconnected(receive: Receive) -> None:
    """Return when the client has left; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_error(error: RequestError, send: Send) -> None:
    """Answer with `error`, in the shape in which the ingress gives its own."""
    headers = [(name.encode(), value.encode()) for name, value in errors.headers(error).items()]
    await send_whole(error.status, errors.body(error), headers, send)


async def send_whole(status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]], send: Send) -> None:
    """Answer with a body that is complete."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
