"""The load test: what a release has to withstand before it goes out.

Here belong the Locust users, the traces that they replay, the gate that compares a run with the promises made,
the simulator, and the benchmark against other gateways. It speaks to a platform only as a client does.
"""
