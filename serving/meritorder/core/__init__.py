"""Plain types and rules that every other folder shares.

Standard library only, no I/O, no clock and no framework: whoever reads a signature here knows all it does.
Parsing belongs in `wire` and `manifests`, decisions in `routing`.
"""
