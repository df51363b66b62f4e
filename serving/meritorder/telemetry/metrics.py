"""Prometheus metrics of the ingress.

Every label has a bounded set of values: names from manifests, and enums. What a client sends is never one.
"""

from functools import cache

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
        served = ("route", "arm", "backend", "team", "endpoint")
        requests = Counter(
            "meritorder_requests",
            "Requests let in, by how they ended.",
            (*served, "outcome"),
            registry=registry,
        )
        duration = Histogram(
            "meritorder_request_duration_seconds",
            "From the request's arrival to the last byte of its answer.",
            ("route", "arm", "backend", "endpoint"),
            buckets=_DURATION_SECONDS,
            registry=registry,
        )
        ttft = Histogram(
            "meritorder_time_to_first_token_seconds",
            "From the request's arrival to the first event of a streamed answer.",
            ("route", "arm", "backend"),
            buckets=_TTFT_SECONDS,
            registry=registry,
        )
        tokens = Counter("meritorder_tokens", "Tokens used.", ("backend", "team", "direction"), registry=registry)
        cost = Counter("meritorder_cost_usd", "Marginal cost in US dollars.", ("backend", "team"), registry=registry)
        attempts = Counter(
            "meritorder_attempts",
            "Attempts at a backend, by outcome.",
            ("backend", "outcome"),
            registry=registry,
        )
        self._hedges = Counter(
            "meritorder_hedges", "Second attempts made while the first was slow.", ("route",), registry=registry
        )
        self._errors = Counter(
            "meritorder_errors",
            "Requests answered with an error of the ingress, by code.",
            ("code",),
            registry=registry,
        )
        # Of those that each request counts, the series are remembered: to look one up takes longer than to count.
        self._requests = cache(requests.labels)
        self._duration = cache(duration.labels)
        self._ttft = cache(ttft.labels)
        self._tokens = cache(tokens.labels)
        self._cost = cache(cost.labels)
        self._attempts = cache(attempts.labels)
        self.in_flight = Gauge(
            "meritorder_in_flight_requests", "Requests open at a backend.", ("backend",), registry=registry
        )
        self.shadow_price = Gauge(
            "meritorder_shadow_price_usd",
            "What the capacity of a self-run application is worth, in US dollars per token of work.",
            ("application",),
            registry=registry,
        )
        self.circuit = Gauge(
            "meritorder_circuit_state",
            "1 for the state that the circuit breaker of a backend is in.",
            ("backend", "state"),
            registry=registry,
        )
        self.ledger_waiting = Gauge(
            "meritorder_ledger_waiting_records", "Usage records that are not in the database yet.", registry=registry
        )
        self.spool_bytes = Gauge("meritorder_ledger_spool_bytes", "Size of the ledger's spool.", registry=registry)
        self.generation = Gauge(
            "meritorder_config_generation", "Configurations put in force since the start.", registry=registry
        )
        self.config_ok = Gauge(
            "meritorder_config_last_reload_successful",
            "1 where the manifests as they stand are in force.",
            registry=registry,
        )

    def attempted(self, backend: str, outcome: str) -> None:
        self._attempts(backend, outcome).inc()

    def hedged(self, route: str) -> None:
        self._hedges.labels(route).inc()

    def refused(self, code: str) -> None:
        self._errors.labels(code).inc()

    def settled(self, record: UsageRecord) -> None:
        """Count one request that has ended."""
        backend = record.backend or _NONE
        arm = record.arm or ""
        self._requests(record.route, arm, backend, record.team, record.endpoint, record.outcome).inc()
        self._duration(record.route, arm, backend, record.endpoint).observe(record.duration)
        if record.time_to_first_token is not None:
            self._ttft(record.route, arm, backend).observe(record.time_to_first_token)
        for charge in record.charges:
            self._tokens(charge.backend, record.team, "input").inc(charge.usage.input_tokens)
            self._tokens(charge.backend, record.team, "output").inc(charge.usage.output_tokens)
            if charge.cost is not None:
                self._cost(charge.backend, record.team).inc(float(charge.cost))

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
