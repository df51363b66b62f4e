"""Ray Serve applications, one per `Model` and one per `Provider`, on a cluster and on this machine alike.

`applications` turns manifests into entries of a Serve config, whose import paths are the builders in `apps`. A
model is an `engine` (what it is told: `plan`), a provider a `hosted` proxy (`hosted_replica` runs it in Serve).
What starts and watches a cluster on this machine is in `local`.

Ray is imported only by what runs inside it: `apps`, `engine`, `llm_server`, `hosted_replica`; importing the rest
stays cheap.
"""
