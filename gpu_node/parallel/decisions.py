"""What a mesh's first rank tells the others before each step, over connections of their own.

A broadcast of gloo's takes several messages and threads on each rank, and so much of a processor
that ranks share that it delayed their steps. Here what was told lies in the socket of whoever comes
to look. The connections end as gloo's do: `sockets.shut` finds them by the address on which the
first rank listened.
"""

from __future__ import annotations

import json
import secrets
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Protocol

from torch.distributed.distributed_c10d import Store

from ditmesh.mesh import MeshSpec
from gpu_node.parallel.sockets import Address

_LOOPBACK: Address = ("127.0.0.1", 0)
_HELLO_S = 1.0
_MORE = 16
"""Strangers that may be waiting, beside the ranks, to be turned away."""


class ConnectionBroken(OSError):
    """The other end of a connection between ranks is gone, out of reach, or silent."""


class Decisions(Protocol):
    """One rank's end."""

    def share(self, values: Sequence[int]) -> list[int]:
        """The first rank's values, which it sends without waiting for anybody.

        Raises ConnectionBroken.
        """
        ...

    def close(self) -> None:
        """End the connections."""
        ...


class Telling:
    """The first rank's end."""

    def __init__(self, host: str, others: int, timeout_s: float) -> None:
        """Listen on an address of this machine, for so many ranks."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=others + _MORE)
        self._listener.settimeout(timeout_s)
        self._others = others
        self._timeout_s = timeout_s
        self._token = secrets.token_hex(16)
        self._connections: list[socket.socket] = []
        host, port = self._listener.getsockname()[:2]
        self.address: Address = (host, port)

    def invitation(self) -> str:
        """What the others need to connect."""
        return json.dumps([*self.address, self._token])

    def accept(self) -> None:
        """Take the others' connections, who are all known to have made them.

        Raises ConnectionBroken when one is missing.
        """
        while len(self._connections) < self._others:
            with _telling_of("a rank of this mesh", self._timeout_s):
                connection, _ = self._listener.accept()
            if not self._is_invited(connection):
                connection.close()
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(self._timeout_s)
            self._connections.append(connection)
        self._listener.close()

    def _is_invited(self, connection: socket.socket) -> bool:
        connection.settimeout(_HELLO_S)
        try:
            hello = _receive(connection, len(self._token))
        except OSError:
            return False
        return secrets.compare_digest(hello, self._token.encode())

    def share(self, values: Sequence[int]) -> list[int]:
        """See `Decisions.share`."""
        message = _format(len(values)).pack(*values)
        for connection in self._connections:
            with _telling_of("a rank of this mesh", self._timeout_s):
                connection.sendall(message)
        return list(values)

    def close(self) -> None:
        """See `Decisions.close`."""
        for each in (self._listener, *self._connections):
            each.close()


class Hearing:
    """Any other rank's end."""

    def __init__(self, invitation: str, timeout_s: float) -> None:
        """Connect to the first rank; it need not have accepted yet. Raises ConnectionBroken."""
        host, port, token = json.loads(invitation)
        self._first = f"the first rank of the mesh, at {host}"
        self._timeout_s = timeout_s
        with _telling_of(self._first, timeout_s):
            self._connection = socket.create_connection((host, port), timeout_s)
            try:
                self._connection.sendall(token.encode())
            except OSError:
                self._connection.close()
                raise

    def share(self, values: Sequence[int]) -> list[int]:
        """See `Decisions.share`: these values count for nothing but their number."""
        message = _format(len(values))
        with _telling_of(self._first, self._timeout_s):
            return list(message.unpack(_receive(self._connection, message.size)))

    def close(self) -> None:
        """See `Decisions.close`."""
        self._connection.close()


def invite(
    store: Store,
    meshes: Sequence[MeshSpec],
    rank: int,
    gloo: frozenset[Address],
    timeout_s: float,
) -> Iterator[tuple[MeshSpec, Telling]]:
    """Listen where gloo does for the others of each mesh that this rank is the first of.

    They find it through the store, where everybody's `follow` may come once all have done this.
    Each end is the caller's to close as soon as it is there.
    """
    host = min(gloo, default=_LOOPBACK)[0]
    for mesh in meshes:
        if rank == mesh.ranks[0] and len(mesh.ranks) > 1:
            telling = Telling(host, len(mesh.ranks) - 1, timeout_s)
            yield mesh, telling
            store.set(_key(mesh), telling.invitation())


def follow(
    store: Store, meshes: Sequence[MeshSpec], rank: int, timeout_s: float
) -> Iterator[tuple[MeshSpec, Hearing]]:
    """Connect to the first rank of each other mesh that this rank is in.

    Each end is the caller's to close as soon as it is there. Raises ConnectionBroken.
    """
    for mesh in meshes:
        if rank in mesh.ranks[1:]:
            yield mesh, Hearing(store.get(_key(mesh)).decode(), timeout_s)


def _key(mesh: MeshSpec) -> str:
    return f"decisions/{mesh}"


@contextmanager
def _telling_of(who: str, timeout_s: float) -> Iterator[None]:
    """Turn what the operating system says of a connection into ConnectionBroken."""
    try:
        yield
    except TimeoutError as error:
        raise ConnectionBroken(f"{who} was silent for {timeout_s:g} s") from error
    except OSError as error:
        raise ConnectionBroken(f"the connection to {who} broke: {error}") from error


@lru_cache
def _format(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}q")


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = connection.recv(size - len(received))
        if not more:
            raise ConnectionError("the other end was closed")
        received += more
    return received
