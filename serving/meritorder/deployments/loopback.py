"""Keeps a replica's server for other deployments on loopback, on a cluster that is private to this machine.

Serve starts it on every interface, and offers no setting; nothing here calls it. Everything else that Ray
starts follows the address of the node.
"""

import importlib
import os
from typing import Any

ADDRESS = "127.0.0.1"
VARIABLE = "MERITORDER_LOOPBACK"


def keep_to_loopback() -> None:
    """Call before Serve starts the replica's servers, so in the constructor of a deployment."""
    if os.environ.get(VARIABLE) != "1":
        return
    replica: Any = importlib.import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server

    def on_loopback(server: object, address: str) -> int:
        return int(add_port(server, address.replace("[::]", ADDRESS)))

    replica.add_port_to_grpc_server = on_loopback
