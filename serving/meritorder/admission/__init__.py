"""What a caller may still use, decided in this process and without asking anybody.

Limits and budgets hold over all ingress processes together. Each process leases slices of them from the database, in
the background, and lets requests in against its slices. Here are both halves of that as pure functions and plain state:
what a process does with what it has (`lease`, `rate`, `account`), and how the database shares out what there is
(`sharing`). No I/O, no clock: `now` is given. `ledger.leases` and `ingress.leasing` do what is left.
"""
