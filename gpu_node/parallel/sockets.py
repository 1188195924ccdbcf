"""Closing a group's connections from outside, which frees a thread that waits on a hung peer.

gloo cannot be interrupted: a collective whose peer has stopped returns when its timeout is over.
A closed connection ends it at once. Only connections of the group are closed; they are
told from others, such as gRPC's, by the addresses on which its ranks listen for one another.
Linux only; elsewhere nothing is found, and the timeout frees the thread.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

Address = tuple[str, int]

_FDS = "/proc/self/fd"


def listening() -> frozenset[Address]:
    """The addresses on which this process listens for TCP connections."""
    return frozenset(
        _address(connection.getsockname())
        for connection in _tcp_sockets()
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )


def exchange(
    store: Store, rank: int, world_size: int, mine: frozenset[Address]
) -> frozenset[Address]:
    """Everybody's addresses, through the epoch's store. Waits for all ranks."""
    store.set(f"addresses/{rank}", json.dumps(sorted(mine)))
    keys = [f"addresses/{other}" for other in range(world_size)]
    store.wait(keys)
    return frozenset((host, port) for key in keys for host, port in json.loads(store.get(key)))


def of_store(store: Store) -> frozenset[Address]:
    """The addresses of the server behind a store's client; none if it is not on a network."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not isinstance(store, dist.TCPStore):  # type: ignore[attr-defined] # not by name
        return frozenset()
    found = socket.getaddrinfo(store.host, store.port, type=socket.SOCK_STREAM)
    return frozenset((str(address[0]), int(address[1])) for *_, address in found)


def shut_to(addresses: frozenset[Address]) -> None:
    """Close every connection that this process has made to one of `addresses`."""
    if not addresses:
        return
    for connection in _tcp_sockets():
        with suppress(OSError):  # not connected, or gone meanwhile
            if _address(connection.getpeername()) in addresses:
                connection.shutdown(socket.SHUT_RDWR)


def shut(addresses: frozenset[Address]) -> int:
    """Close every connection from or to one of `addresses`; returns how many there were."""
    count = 0
    for connection in _tcp_sockets():
        with suppress(OSError):  # not connected, or gone meanwhile
            ends = {_address(connection.getsockname()), _address(connection.getpeername())}
            if ends & addresses:
                connection.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


def _tcp_sockets() -> Iterator[socket.socket]:
    """Each TCP socket of this process, on a descriptor of its own that is closed afterwards."""
    if not os.path.isdir(_FDS):
        return
    for name in os.listdir(_FDS):
        with suppress(OSError), _duplicate(int(name)) as found:
            if found is not None:
                yield found


@contextmanager
def _duplicate(fd: int) -> Iterator[socket.socket | None]:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        yield None
        return
    with socket.socket(fileno=os.dup(fd)) as found:
        inet = found.family in (socket.AF_INET, socket.AF_INET6)
        yield found if inet and found.type == socket.SOCK_STREAM else None


def _address(name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    return name[0].removeprefix("::ffff:"), name[1]
