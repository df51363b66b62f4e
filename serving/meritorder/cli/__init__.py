"""The `meritorder` command.

Each command is a module here that talks to a person and nothing else; what it does is done by the folders
below. Commands import what they need when they run, so that `meritorder --help` is quick.
"""
