"""The company's own proxy on the way out, from `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`."""

import urllib.request
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def proxy_for(url: str) -> str | None:
    """The proxy through which `url` is reached, None for directly.

    Not left to aiohttp's `trust_env`, which would also take passwords from `~/.netrc`.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)
