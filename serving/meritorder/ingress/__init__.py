"""The ingress: one process between clients and every backend.

`http` is thin, `auth` says who calls, `dispatch` tells the request's story, `main` puts the parts together.
`world` keeps the state that decisions rest on. Neither Ray nor vLLM is imported here; what a backend is made
of is not known here either.
"""
