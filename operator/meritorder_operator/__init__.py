"""The operator: what turns the custom resources on a cluster into running replicas.

Here belong the reconciliation of `Model` and `Provider` into Ray services, the signals that are read from them,
and the pure functions that decide how many replicas each model needs. It imports `meritorder.core` and
`meritorder.manifests`, and nothing that needs Ray.
"""
