"""Prometheus metrics of the ingress.

Every label has a bounded set of values: names from manifests, and enums. What a client sends is never one.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from meritorder.core.usage import UsageRecord

_TTFT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DURATION_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NONE = "none"


class Metrics:
    """The metrics of one ingress process, in a registry of their own."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        served = ("route", "backend", "team", "endpoint")
        self._requests = Counter(
            "meritorder_requests",
            "Requests let in, by how they ended.",
            (*served, "outcome"),
            registry=registry,
        )
        self._duration = Histogram(
            "meritorder_request_duration_seconds",
            "From the request's arrival to the last byte of its answer.",
            ("route", "backend", "endpoint"),
            buckets=_DURATION_SECONDS,
            registry=registry,
        )
        self._ttft = Histogram(
            "meritorder_time_to_first_token_seconds",
            "From the request's arrival to the first event of a streamed answer.",
            ("route", "backend"),
            buckets=_TTFT_SECONDS,
            registry=registry,
        )
        self._tokens = Counter("meritorder_tokens", "Tokens used.", ("backend", "team", "direction"), registry=registry)
        self._cost = Counter(
            "meritorder_cost_usd", "Marginal cost in US dollars.", ("backend", "team"), registry=registry
        )
        self._attempts = Counter(
            "meritorder_attempts",
            "Attempts at a backend, by outcome.",
            ("backend", "outcome"),
            registry=registry,
        )
        self._errors = Counter(
            "meritorder_errors",
            "Requests answered with an error of the ingress, by code.",
            ("code",),
            registry=registry,
        )
        self.in_flight = Gauge(
            "meritorder_in_flight_requests", "Requests open at a backend.", ("backend",), registry=registry
        )
        self.generation = Gauge(
            "meritorder_config_generation", "Configurations put in force since the start.", registry=registry
        )
        self.config_ok = Gauge(
            "meritorder_config_last_reload_successful",
            "1 where the manifests as they stand are in force.",
            registry=registry,
        )

    def attempted(self, backend: str, outcome: str) -> None:
        self._attempts.labels(backend, outcome).inc()

    def refused(self, code: str) -> None:
        self._errors.labels(code).inc()

    def settled(self, record: UsageRecord) -> None:
        """Count one request that has ended."""
        backend = record.backend or _NONE
        labels = (record.route, backend, record.team, record.endpoint)
        self._requests.labels(*labels, record.outcome).inc()
        self._duration.labels(record.route, backend, record.endpoint).observe(record.duration)
        if record.time_to_first_token is not None:
            self._ttft.labels(record.route, backend).observe(record.time_to_first_token)
        if record.backend is not None:
            self._tokens.labels(backend, record.team, "input").inc(record.usage.input_tokens)
            self._tokens.labels(backend, record.team, "output").inc(record.usage.output_tokens)
            self._cost.labels(backend, record.team).inc(float(record.cost))

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
