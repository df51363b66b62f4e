"""Which headers the hosted proxy passes on, in either direction."""

from collections.abc import Iterable

Headers = list[tuple[str, str]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

NOT_TO_PROVIDER = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"cookie",
    # Whoever calls proves nothing to the provider and chooses no account there.
    b"authorization",
    b"proxy-authorization",
    b"api-key",
    b"x-api-key",
    b"x-goog-api-key",
    b"openai-organization",
    b"openai-project",
}
# Who called, and how it came here, is nothing to the provider.
NOT_TO_PROVIDER_PREFIXES = (b"x-forwarded-", b"forwarded", b"x-real-ip", b"x-meritorder-")

NOT_TO_CLIENT = HOP_BY_HOP | {b"set-cookie", b"server", b"date", b"alt-svc", b"strict-transport-security"}


def request_headers(received: Iterable[tuple[bytes, bytes]], authorization: str | None) -> Headers:
    """The headers for the provider, with `authorization` as the only credential.

    An answer is compressed only where the client asked for it: it is passed on as it comes.
    """
    headers: Headers = []
    compression = "identity"
    for name, value in received:
        low = name.lower()
        if low == b"accept-encoding":
            compression = value.decode("latin-1")
        elif low not in NOT_TO_PROVIDER and not low.startswith(NOT_TO_PROVIDER_PREFIXES):
            headers.append((name.decode("latin-1"), value.decode("latin-1")))
    headers.append(("accept-encoding", compression))
    if authorization:
        headers.append(("authorization", authorization))
    return headers


def response_headers(received: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers for the client, names in lower case as ASGI wants them."""
    return [(name.lower(), value) for name, value in received if name.lower() not in NOT_TO_CLIENT]
