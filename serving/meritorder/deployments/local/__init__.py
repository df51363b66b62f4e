"""The local cluster: a private Ray on this machine, which stands in for what Kubernetes and the operator do.

`cluster` is what the rest of the project calls. It starts `supervisor`, a process that owns everything below it;
that one starts `driver`, which holds Ray and keeps the `fleet` of applications as it is wanted (`preflight`,
`restarts`) and reports how it is (`observe`, `failures`, `probe`).

What runs inside the cluster, here and on Kubernetes alike, is not here but in the folder above. Nothing above
imports this folder, and only `driver` imports Ray.
"""
