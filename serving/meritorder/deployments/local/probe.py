"""Whether an application answers through HAProxy."""

import urllib.error
import urllib.request

TIMEOUT = 2.0


def answers(endpoint: str) -> bool:
    """Whether `GET <endpoint>/health` is 200; both kinds of application have it."""
    # Proxies of the environment are not for loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{endpoint}/health", timeout=TIMEOUT) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
