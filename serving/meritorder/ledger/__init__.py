"""The database: API keys, usage records, budgets and leases. SQLite, or PostgreSQL where several machines share it.

`schema` has the tables and `database` opens them; `usage` is the way of a record from the request into the tables,
by `spool` and `records`; `keys` keeps keys. Whether a request is let in, and what it costs, is decided elsewhere.
"""
