"""The load test: what a release has to withstand before it goes out.

Here belong the Locust users, the traces that they replay, the gate that compares a run with the promises made,
the simulator, and the benchmarks. All of it speaks to a platform only as a client does, but for `bench_dispatch`, which
measures what a client cannot see: the CPU that a request costs inside the ingress.
"""
