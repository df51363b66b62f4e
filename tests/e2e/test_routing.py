"""Spill-over, fallback and cancellation, with the real engine."""

import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e

LONG: Any = [{"role": "user", "content": "Tell me the story of one request."}]
ROOM = 4  # `max_num_seqs` of the quickstart's model


def test_a_single_request_stays_on_the_self_run_model(platform: Any) -> None:
    assert _backend(platform.client()) == "faq"


def test_just_the_overflow_of_a_burst_goes_to_the_hosted_side(platform: Any) -> None:
    burst = ROOM + 8
    client = platform.client()
    together = threading.Barrier(burst)

    def one(_: int) -> str:
        together.wait()
        return _backend(client)

    with ThreadPoolExecutor(burst) as pool:
        backends = list(pool.map(one, range(burst)))
    assert set(backends) == {"faq", "hosted/chat"}
    assert backends.count("faq") >= ROOM


def test_traffic_comes_back_after_the_burst(platform: Any, until: Any) -> None:
    until(lambda: _backend(platform.client()) == "faq", 10, "the self-run model is preferred again")


def test_a_model_that_does_not_load_is_passed_over(platform: Any, upstream: Any) -> None:
    upstream.script(text="simulated, and here")
    answer = platform.client().chat.completions.create(model="fallback", messages=LONG)
    assert answer.choices[0].message.content == "simulated, and here"


def test_a_client_that_leaves_frees_the_engine(platform: Any, until: Any) -> None:
    before = _engine(platform, "generation_tokens_total")  # a few seconds old: those of earlier tests may follow
    # Without an end of its own, this would go on until it has 4 x 1900 tokens.
    stream = platform.client().chat.completions.create(
        model="faq", messages=LONG, stream=True, max_tokens=1900, n=4, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()

    def ended() -> bool:
        return _engine(platform, "generation_tokens_total") > before and _engine(platform, "num_requests_running") == 0

    until(ended, 30, "the engine has reported the end of the request")  # it reports every few seconds
    assert _engine(platform, "generation_tokens_total") - before < 4 * 1900 / 2


def test_a_client_that_leaves_cancels_the_providers_call(platform: Any, upstream: Any, until: Any) -> None:
    upstream.script(tokens=10_000, itl_ms=20)
    stream = platform.client().chat.completions.create(model="scripted/talker", messages=LONG, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: upstream.requests()[-1]["outcome"] == "client_disconnected", 5, "the provider has seen it")


def _backend(client: openai.OpenAI) -> str:
    raw = client.chat.completions.with_raw_response.create(model="assistant", messages=LONG)
    raw.parse()
    return str(raw.headers["x-meritorder-backend"])


def _engine(platform: Any, metric: str) -> float:
    """One of vLLM's own metrics, as Ray exports them."""
    port = next((platform.state_dir / "ray" / "session_latest").glob("metrics_export_port_*")).read_text()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"ray_vllm_{metric}{{"))
