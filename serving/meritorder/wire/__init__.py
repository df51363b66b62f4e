"""Wire formats: bytes in, values out, and back. Pure functions, no sockets.

What is not read is not touched: a field that this project has never heard of survives both ways, byte for
byte. No provider's schema is mirrored here; each function names the few fields that it needs.
"""
