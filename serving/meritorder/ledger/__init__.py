"""The database: API keys, and one usage record per request. SQLite here.

One module owns the schema, one writes usage, one keeps keys. Whether a request is let in, and what it costs,
is decided elsewhere.
"""
