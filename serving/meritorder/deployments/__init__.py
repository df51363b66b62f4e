"""Ray Serve applications, one per `Model` and one per `Provider`, and the local cluster that runs them.

`apps` builds the applications, on a cluster (`serveConfigV2`) and on this machine alike; `local` starts a
private Ray here. Ray is imported only by what runs inside it (`apps`, `engine`, `llm_server`, `hosted_replica`)
and by the local cluster's own process (`driver`, `fleet`); importing the rest stays cheap.
"""
