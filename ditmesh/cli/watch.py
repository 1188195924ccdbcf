"""What `ditmesh up` says: a line whenever the cluster gets ready, or ceases to be."""

from __future__ import annotations

import time

from ditmesh.cli.status import lacking
from ditmesh.cli.tables import counted
from ditmesh.client import Client, ClusterSnapshot
from ditmesh.errors import DitmeshError

_POLL_S = 0.5


def run(address: str) -> int:
    """Watch until the process is ended."""
    said = ""
    with Client(address, timeout_s=5.0) as client:
        while True:
            words = _state(client, address, started=bool(said))
            if words and words != said:
                print(words, flush=True)
                said = words
            time.sleep(_POLL_S)


def _state(client: Client, address: str, *, started: bool) -> str:
    """The line that describes the moment; empty while a new cluster is not ready yet."""
    try:
        snapshot = client.cluster()
    except DitmeshError as error:
        return f"not reachable: {error}" if started else ""
    if snapshot.ready:
        return ready_line(snapshot, address)
    return f"not ready: {lacking(snapshot)}" if started else ""


def ready_line(snapshot: ClusterSnapshot, address: str) -> str:
    """Who is ready to do what, and where."""
    group = snapshot.group
    who = (
        f"{counted(group.world_size, 'node')} in one group, {' and '.join(group.meshes)}, "
        f"epoch {group.epoch}"
        if snapshot.nodes
        else f"the local sampler on {snapshot.local.device}"
    )
    models = ", ".join(card.name for card in snapshot.models) or "none yet"
    return f"ready at {address}: {who}; models: {models}"
