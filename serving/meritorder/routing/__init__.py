"""Where a request goes: pure functions of a snapshot, the request and a given `now`.

No I/O, no clock, no randomness, no state. The state that a decision rests on is kept by `ingress.world`
and handed over as a `Snapshot`; what comes back is an explained `RoutePlan`.
"""
