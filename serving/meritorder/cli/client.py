"""A small HTTP client of the ingress for the commands, on the standard library."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

_TIMEOUT_SECONDS = 300.0
_DONE = "[DONE]"


class NoAnswer(click.ClickException):
    """The ingress cannot be reached."""


@dataclass(slots=True)
class Streamed:
    """One streamed chat completion as it comes in. Times are in seconds since the request was sent."""

    request_id: str
    backend: str
    simulated: bool
    deltas: Iterator[str]
    sent: float
    time_to_first_token: float | None = None


# Never through a proxy: it would get the key, and what is asked for is on this machine.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def get_json(url: str, key: str | None = None) -> dict[str, Any]:
    """The JSON at `url`, whatever its status; `key` is a team's.

    Raises:
        NoAnswer: nothing answers there, or not in JSON.
    """
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        try:
            with _open(request, timeout=10) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.load(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAnswer(f"{url} does not answer: {error}") from None


def post_json(url: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON that `url` answers to `body`.

    Raises:
        click.ClickException: with the sentence of the ingress, where it refuses.
    """
    try:
        with _post(url, key, body) as response:
            return dict(json.load(response))
    except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
        raise NoAnswer(f"{url} does not answer: {error}") from None


def first_model(url: str, key: str) -> str:
    """The first name that the key's team may call."""
    listed = get_json(f"{url}/v1/models", key)
    if "error" in listed:
        raise click.ClickException(listed["error"]["message"])
    if not listed["data"]:
        raise click.ClickException("the key's team may call nothing; see `routes` of its Team manifest")
    return str(listed["data"][0]["id"])


def stream_chat(url: str, key: str, body: dict[str, Any]) -> Streamed:
    """Send a chat completion to the ingress at `url` and read its answer as it comes.

    Raises:
        click.ClickException: with the sentence of the ingress, where it refuses.
    """
    sent = time.monotonic()
    response = _post(f"{url}/v1/chat/completions", key, {**body, "stream": True})
    headers = response.headers
    streamed = Streamed(
        request_id=headers["x-request-id"],
        backend=headers["x-meritorder-backend"],
        simulated=headers.get("x-simulated") is not None,
        deltas=iter(()),
        sent=sent,
    )
    streamed.deltas = _deltas(response, streamed)
    return streamed


def _post(url: str, key: str, body: dict[str, Any]) -> http.client.HTTPResponse:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    try:
        response: http.client.HTTPResponse = _open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            raise click.ClickException(_message(error.read())) from None
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"{url} does not answer: {error}") from None
    return response


def _deltas(response: http.client.HTTPResponse, streamed: Streamed) -> Iterator[str]:
    try:
        with response:
            for line in response:
                data = line.decode().removeprefix("data:").strip()
                if not line.startswith(b"data:") or data == _DONE:
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise click.ClickException(event["error"]["message"])
                if streamed.time_to_first_token is None:
                    streamed.time_to_first_token = time.monotonic() - streamed.sent
                for choice in event.get("choices", ()):
                    yield choice["delta"].get("content") or ""
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAnswer(f"the answer broke off: {error}") from None


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the ingress answered: {body[:200]!r}"
