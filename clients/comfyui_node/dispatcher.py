"""Where the cluster is, and what may happen when it cannot do the work: the value that
XDiTDispatcher hands to the other nodes.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import comfy_api
from .waiting import wait_for

if TYPE_CHECKING:
    from ditmesh.client import Client, ClusterSnapshot, Fallback

DEFAULT_ADDRESS = "localhost:50050"
ADDRESS_VARIABLE = "DITMESH_ADDRESS"
TOKEN_VARIABLE = "DITMESH_TOKEN"

ALLOW, CLUSTER_ONLY, GROUP_OR_COMFYUI, GROUP_ONLY = FALLBACKS = (
    "allow",
    "cluster only",
    "group or ComfyUI",
    "group only",
)
"""What may sample when the GPU group cannot: the cluster's own sampler and ComfyUI; only the
former; only the latter; nobody."""


@dataclass(frozen=True)
class Dispatcher:
    """A cluster as one node's widgets describe it.

    `timeout_s`: the longest that the cluster may take for one picture, waiting included; for a
    single transformer call of somebody else's sampler; 0: as long as it takes.
    `reconnect_s`: how long a broken connection is taken up again before the job counts as lost.
    `token_variable` names the environment variable that holds the token: a workflow is saved in
    every picture, so no secret may be in it.
    """

    address: str = DEFAULT_ADDRESS
    tls: bool = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    token_variable: str = TOKEN_VARIABLE
    timeout_s: float = 0.0
    reconnect_s: float = 10.0
    fallback: str = ALLOW

    @classmethod
    def from_environment(cls) -> Dispatcher:
        """What a sampler uses that is given no dispatcher."""
        return cls(address=os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS))

    @property
    def deadline_s(self) -> float | None:
        """The time limit of a job, as the client takes it."""
        return self.timeout_s or None

    @property
    def cluster_fallback(self) -> Fallback:
        """The policy for the cluster itself, by the client's name for it."""
        return "allow" if self.fallback in (ALLOW, CLUSTER_ONLY) else "forbid"

    @property
    def comfyui_may_sample(self) -> bool:
        """Whether ComfyUI's own sampler may take over."""
        return self.fallback in (ALLOW, GROUP_OR_COMFYUI)

    def client(self) -> Client:
        """The connection to this cluster, opened on first use and kept.

        Raises ditmesh.errors.InvalidRequest for certificate files that cannot be read.
        """
        client: Client = _CLIENTS.get(self)
        return client

    def cluster(self) -> ClusterSnapshot:
        """The cluster at this moment; Cancel ends the wait for it.

        Raises ditmesh.errors.DitmeshError when it cannot be asked.
        """
        from ditmesh.errors import Unavailable

        is_new = self not in _CLIENTS
        client = self.client()
        try:
            return wait_for(
                client.cluster, check=comfy_api.raise_if_cancelled, abandon=lambda: None
            )
        except Unavailable:
            # Where a connection once failed, it pauses before it tries again; a new one does not.
            self.hang_up()
            if is_new:
                raise
        return self.cluster()

    def hang_up(self) -> None:
        """Close the connection; the next use opens another."""
        _CLIENTS.drop(self)


def _connect(dispatcher: Dispatcher) -> Client:
    from ditmesh.client import TLS, Client

    tls = None
    if dispatcher.tls:
        ca, certificate, key = (
            Path(name).expanduser() if name else None
            for name in (dispatcher.ca_file, dispatcher.certificate_file, dispatcher.key_file)
        )
        tls = TLS(ca=ca, certificate=certificate, key=key)
    return Client(
        dispatcher.address,
        tls=tls,
        token=os.environ.get(dispatcher.token_variable) or None,
        timeout_s=30.0,
        retries=2,
        reattach_s=dispatcher.reconnect_s,
    )


_Key = tuple[Dispatcher, str]


def _key(dispatcher: Dispatcher) -> _Key:
    """What makes another connection: the terms of single jobs do not."""
    token = os.environ.get(dispatcher.token_variable, "")
    return replace(dispatcher, timeout_s=0.0, fallback=ALLOW), token


class ClientCache:
    """One client for each cluster, token included, for as long as ComfyUI runs."""

    def __init__(self, connect: Callable[[Dispatcher], Any] = _connect) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._clients: dict[_Key, Any] = {}

    def get(self, dispatcher: Dispatcher) -> Any:
        """The client of this cluster; another one once the token has changed."""
        key = _key(dispatcher)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = self._connect(dispatcher)
            return self._clients[key]

    def __contains__(self, dispatcher: Dispatcher) -> bool:
        with self._lock:
            return _key(dispatcher) in self._clients

    def drop(self, dispatcher: Dispatcher) -> None:
        """Hang up, so that the next use connects anew."""
        with self._lock:
            client = self._clients.pop(_key(dispatcher), None)
        if client is not None:
            client.close()

    def close(self) -> None:
        """Hang up everywhere."""
        with self._lock:
            while self._clients:
                self._clients.popitem()[1].close()


_CLIENTS = ClientCache()
atexit.register(_CLIENTS.close)
