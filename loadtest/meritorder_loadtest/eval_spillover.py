"""Spill-over on a real platform: what stays on the self-run model, what goes to the hosted one, what it costs.

    python -m meritorder_loadtest.eval_spillover [--seconds 30]

Starts `meritorder up` with the quickstart: the real engine on the CPU, with room for four requests, and a simulated
provider. Clients that each send the next request when the last is answered then load it in three phases: two of them,
twelve, and two again. The last line has the figures as JSON. Ends with an error only where nothing could be measured.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from meritorder_loadtest.figures import mean, quantile, table
from meritorder_loadtest.spillover import Seen, at, bars, changes, in_flight, share, timeline

MANIFESTS = Path("examples/quickstart")
ROUTE, SELF_RUN, TEAM = "assistant", "faq", "demo"
ROOM = 4  # `max_num_seqs` of the quickstart's model
PHASES = (("low", 2), ("saturated", 12), ("after", 2))

_UP_SECONDS = 300.0  # 45 on two idle cores
_ANSWER_SECONDS = 60.0
_STOP_SECONDS = 60.0
_MAX_TOKENS = 200
_QUESTION = "Tell me the story of one request."
_PAUSE_AFTER_FAILURE = 0.5
_STEP_SECONDS = 5.0  # longer than a request, so that each step has some


class NotMeasured(Exception):
    """The platform did not come up, or nothing was answered."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A running platform and a key for it."""

    url: str
    key: str


@dataclass
class Load:
    """Clients of one phase after the other, and what they saw."""

    platform: Platform
    seen: list[Seen] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, phase: str, clients: int, seconds: float) -> tuple[float, float]:
        """Load for `seconds`, and wait for the last answers; from when to when it was loaded."""
        start = time.monotonic()
        threads = [threading.Thread(target=self._client, args=(phase, start + seconds)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return start, start + seconds

    def _client(self, phase: str, until: float) -> None:
        while time.monotonic() < until:
            with self._lock:
                self._open += 1
                open_now = self._open
            try:
                one = ask(self.platform, phase, open_now)
            except (OSError, http.client.HTTPException, ValueError, KeyError, NotAnswered) as error:
                one = None
                self.failures.append(f"{phase}: {error}")
            with self._lock:
                self._open -= 1
                if one is not None:
                    self.seen.append(one)
            if one is None:
                time.sleep(_PAUSE_AFTER_FAILURE)


class NotAnswered(Exception):
    """The answer was an error, or not complete."""


_open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def ask(platform: Platform, phase: str, open_now: int) -> Seen:
    """Send one streamed request and read its answer to the end.

    Raises:
        NotAnswered: it was an error, or broke off.
        OSError, http.client.HTTPException: there was no answer.
    """
    body = {
        "model": ROUTE, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": _MAX_TOKENS,
        "messages": [{"role": "user", "content": _QUESTION}],
    }  # fmt: skip
    headers = {"content-type": "application/json", "authorization": f"Bearer {platform.key}"}
    request = urllib.request.Request(f"{platform.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    sent, first, usage = time.monotonic(), None, None
    try:
        with _open_url(request, timeout=_ANSWER_SECONDS) as response:
            for line in response:
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:"):
                    continue
                first = first or time.monotonic()
                if data == b"[DONE]" and usage is not None:
                    told = usage["meritorder"]
                    return Seen(
                        phase, told["backend"], open_now, sent, first, time.monotonic(), Decimal(told["cost_usd"])
                    )  # fmt: skip
                event = json.loads(data) if data != b"[DONE]" else {}
                if "error" in event:
                    raise NotAnswered(event["error"]["message"])
                usage = event.get("usage") or usage
    except urllib.error.HTTPError as error:
        with error:
            raise NotAnswered(error.read(500).decode(errors="replace")) from None
    raise NotAnswered("the stream ended too soon, or without usage")


@contextlib.contextmanager
def running_platform() -> Iterator[Platform]:
    """A platform of its own in a temporary folder; it is stopped in the end.

    Raises:
        NotMeasured: it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="mo-eval-", ignore_cleanup_errors=True) as folder:
        state, log, port = Path(folder, "state"), Path(folder, "up.log"), _free_port()
        environment = {**os.environ, "MERITORDER_STATE_DIR": str(state)}
        command = [sys.executable, "-m", "meritorder.cli"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "up", "-f", str(MANIFESTS), "--port", str(port)],
                env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log)
            made = subprocess.run(
                [*command, "key", "create", "--team", TEAM], env=environment, capture_output=True, text=True, check=True
            )
            yield _once_accepted(Platform(url, made.stdout.strip()))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_STOP_SECONDS)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _UP_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if _is_ready(url):
            return
        time.sleep(0.2)
    raise NotMeasured(f"the platform did not come up:\n{log.read_text(errors='replace')[-2000:]}")


def _is_ready(url: str) -> bool:
    try:
        with _open_url(f"{url}/readyz", timeout=5) as response:
            applications: list[dict[str, Any]] = json.load(response).get("applications", [])
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return bool(applications) and all(one["phase"] == "Ready" for one in applications)


def _once_accepted(platform: Platform) -> Platform:
    """A new key is known after half a second, and the engine is warm after the first answers."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    answers, problem = 0, ""
    while time.monotonic() < deadline:
        try:
            ask(platform, "warm-up", 1)
            answers += 1
        except (OSError, http.client.HTTPException, NotAnswered) as error:
            problem = str(error)
            time.sleep(0.2)
        if answers == ROOM:
            return platform
    raise NotMeasured(f"the platform does not answer: {problem}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def report(load: Load, times: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Print the tables; the figures for machines."""
    rows = []
    for phase, clients in PHASES:
        mine = [one for one in load.seen if one.phase == phase]
        own = share(mine, SELF_RUN)
        rows.append([
            f"{phase}, {clients} clients", len(mine), f"{own:.1%}",
            f"{in_flight(load.seen, SELF_RUN, *times[phase]):.2f}", _ttft(mine, True), _ttft(mine, False),
            f"{mean([one.ended - one.sent for one in mine if one.backend == SELF_RUN]):.2f}",
            f"{sum((one.cost for one in mine), Decimal(0)):.6f}",
        ])  # fmt: skip
    heads = ("phase", "requests", "self-run", "its mean in flight", "its TTFT, ms", "hosted TTFT, ms",
             "its duration, s", "spent, USD")  # fmt: skip
    print(table(heads, rows))
    print(f"\nRequests sent in each second: # stayed, o spilled over\n\n{bars(timeline(load.seen, SELF_RUN))}\n")
    spilled = [one for one in load.seen if one.backend not in (None, SELF_RUN)]
    early = sum(at(load.seen, SELF_RUN, one.sent) < ROOM for one in spilled)
    turns = changes(timeline(load.seen, SELF_RUN, _STEP_SECONDS))
    print(f"Changes of direction in steps of {_STEP_SECONDS:g} s: {turns} (2 is once there and once back).")
    print(f"Of {len(spilled)} that spilled, {early} did so where the replica, as the clients saw it, had room.")
    for failure in load.failures[:10]:
        print(f"failed: {failure}")
    saturated = [one for one in load.seen if one.phase == "saturated"]
    low, after = ([one for one in load.seen if one.phase == phase] for phase in ("low", "after"))
    return {
        "low_self_run_share": round(share(low, SELF_RUN), 4),
        "saturated_self_run_in_flight": round(in_flight(load.seen, SELF_RUN, *times["saturated"]), 2),
        "saturated_spill_share": round(1 - share(saturated, SELF_RUN), 4),
        "after_self_run_share": round(share(after, SELF_RUN), 4),
        "failed": len(load.failures),
    }


def _ttft(seen: Sequence[Seen], own: bool) -> str:
    """The median."""
    waits = [one.first_token - one.sent for one in seen if one.first_token and (one.backend == SELF_RUN) is own]
    return f"{quantile(waits, 0.5) * 1000:.0f}" if waits else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each phase lasts")
    seconds = parser.parse_args().seconds
    try:
        with running_platform() as platform:
            load = Load(platform)
            times = {phase: load.run(phase, clients, seconds) for phase, clients in PHASES}
        if not load.seen:
            raise NotMeasured(f"no request was answered: {load.failures[:1]}")
    except NotMeasured as problem:
        print(problem, file=sys.stderr)
        return 1
    figures = report(load, times)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
