"""Where a request goes: pure functions of a snapshot, the request, a given `now` and a given draw.

No I/O, no clock, no randomness. What decisions rest on (circuits, quotas, latencies, prices, prefixes) are small
state machines here, each told what happened and when; who keeps them, tells them and locks nothing is
`ingress.world`. It hands them over as a `Snapshot`, which planning reads and never changes, and what comes back is an
explained `RoutePlan`.
"""
