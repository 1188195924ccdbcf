"""`ditmesh status`: the cluster at this moment."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable

from ditmesh.cli import connecting
from ditmesh.cli.tables import counted, size_of, table
from ditmesh.client import Client, ClusterSnapshot
from ditmesh.errors import DeadlineExceeded, Unavailable
from ditmesh.options import bounded

HELP = "show nodes, group, queue and models"
DESCRIPTION = "Shows what the coordinator knows: nodes, group, mesh, queue, models."
_POLL_S = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.add_argument(
        "--wait-ready",
        type=bounded(float, 0, 86_400),
        metavar="SECONDS",
        help="wait until jobs can run: on the group, or on the local sampler of a cluster "
        "without nodes",
    )
    connecting.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the state. Raises the client's errors, DeadlineExceeded when it does not get ready."""
    with connecting.connect(args, timeout_s=10.0) as client:
        if args.wait_ready is not None:
            snapshot = wait_ready(client, args.wait_ready)
        else:
            snapshot = client.cluster()
    if args.json:
        described = {**dataclasses.asdict(snapshot), "ready": snapshot.ready}
        json.dump(described, sys.stdout, indent=2)
        print()
    else:
        print(describe(snapshot, args.address))
    return 0


def wait_ready(
    client: Client, seconds: float, on_wait: Callable[[str], None] = lambda words: None
) -> ClusterSnapshot:
    """The cluster once jobs can run. `on_wait` is told what is waited for, whenever that changes.

    Raises DeadlineExceeded, with what was last amiss, after `seconds`.
    """
    end = time.monotonic() + seconds
    told = ""
    while True:
        try:
            snapshot = client.cluster()
            if snapshot.ready:
                return snapshot
            words = lacking(snapshot)
        except (Unavailable, DeadlineExceeded) as error:
            words = str(error)
        if words != told:
            told = words
            on_wait(words)
        if time.monotonic() >= end:
            raise DeadlineExceeded(f"not ready after {seconds:g} s: {words}")
        time.sleep(_POLL_S)


def lacking(snapshot: ClusterSnapshot) -> str:
    """What a cluster that is not ready waits for."""
    if not snapshot.nodes:
        problem = snapshot.local.problem
        return "the local sampler is not available" + (f": {problem}" if problem else "")
    up = sum(node.state != "down" for node in snapshot.nodes)
    words = f"the group is {snapshot.group.state}, {up} of {len(snapshot.nodes)} nodes are up"
    problem = snapshot.group.problem
    return f"{words}: {problem}" if problem else words


def describe(snapshot: ClusterSnapshot, address: str) -> str:
    """The state for people."""
    parts = [f"coordinator {address}, version {snapshot.version}", _group(snapshot)]
    queue = snapshot.queue
    parts.append(
        f"queue   {counted(queue.waiting, 'job')} waiting, {queue.running} running, "
        f"{size_of(queue.bytes_in_flight)} of {size_of(queue.bytes_limit)} in flight"
    )
    local = snapshot.local
    parts.append(
        f"local   ready on {local.device or 'an unknown device'}"
        if local.available
        else f"local   none: {local.problem or 'not configured'}"
    )
    if snapshot.nodes:
        parts.append(_nodes(snapshot))
    if snapshot.models:
        parts.append(_models(snapshot))
    else:
        parts.append("no models")
    return "\n".join(parts)


def _group(snapshot: ClusterSnapshot) -> str:
    group = snapshot.group
    if not snapshot.nodes:
        return "group   none: no nodes are configured"
    text = f"group   {group.state}"
    if group.state == "ready":
        text += f", epoch {group.epoch}, {counted(group.world_size, 'rank')}"
        text += ", mesh " + " and ".join(group.meshes)
    return f"{text}: {group.problem}" if group.problem else text


def _nodes(snapshot: ClusterSnapshot) -> str:
    rows = []
    for node in snapshot.nodes:
        memory = ""
        if node.memory_total_bytes:
            memory = f"{size_of(node.memory_used_bytes)} of {size_of(node.memory_total_bytes)}"
        rank = "-" if node.rank is None else str(node.rank)
        loaded = ", ".join(node.loaded_models)
        rows.append(
            (node.address, node.state, rank, node.device, memory, node.pid, loaded, node.problem)
        )
    header = ("node", "state", "rank", "device", "memory", "pid", "loaded", "problem")
    return "\n" + table(header, rows)


def _models(snapshot: ClusterSnapshot) -> str:
    header = ("model", "family", "parameters", "heads", "group", "local", "prompts")
    rows = [
        (
            card.name,
            card.family,
            f"{card.parameters / 1e9:.2f} B"
            if card.parameters >= 1e8
            else f"{card.parameters / 1e6:.2f} M",
            card.num_heads,
            "yes" if card.on_group else "no",
            "yes" if card.on_local else "no",
            "yes" if card.has_pipeline else "no",
        )
        for card in snapshot.models
    ]
    return "\n" + table(header, rows)
