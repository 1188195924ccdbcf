"""Ports for servers that must listen where they are told."""

from __future__ import annotations

import random
import socket

_PORTS = range(16_000, 30_000)
"""Below those that the kernel hands out, and those that `ditmesh up` looks for."""


def free_ports(count: int) -> int:
    """The first of so many free ports in a row. Nobody gets one of them by chance meanwhile."""
    for _ in range(200):
        first = random.choice(_PORTS)
        if all(_free(first + i) for i in range(count)):
            return first
    raise AssertionError("no free ports")


def free_address() -> str:
    """A free port of this machine, as host:port."""
    return f"127.0.0.1:{free_ports(1)}"


def _free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
