"""Defaults that have to go together."""

from pathlib import Path

from meritorder.ingress.settings import Settings

KUBERNETES_GRACE_SECONDS = 30


def test_a_stop_takes_less_than_kubernetes_gives_a_pod() -> None:
    settings = Settings((), Path(), Path())
    assert settings.drain_seconds + settings.settle_seconds < KUBERNETES_GRACE_SECONDS
