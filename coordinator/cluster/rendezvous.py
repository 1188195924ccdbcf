"""The store at which ranks find one another, hosted by the coordinator.

The coordinator outlives every rank, so the death of any of them leaves the store standing.
It is neither encrypted nor authenticated: it listens on one address only.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch import distributed as dist

from ditmesh import rendezvous


class Rendezvous:
    """A TCPStore on a listening socket of its own (by itself it would bind every interface)."""

    def __init__(self, host: str, port: int = 0) -> None:
        """Raises OSError when the address cannot be bound."""
        listener = socket.create_server((host, port))
        self.address = f"{host}:{listener.getsockname()[1]}"
        # The store owns the descriptor from here on.
        self._store = dist.TCPStore(  # type: ignore[attr-defined] # exported, but not by name
            host,
            listener.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=30),
            master_listen_fd=listener.detach(),
        )

    def arrived(self, epoch: int, world_size: int) -> set[int]:
        """The ranks of an epoch that have come to meet the others. Asks the store: may block."""
        store = dist.PrefixStore(rendezvous.prefix(epoch), self._store)  # type: ignore[attr-defined]
        return {rank for rank in range(world_size) if store.check([rendezvous.arrival(rank)])}
