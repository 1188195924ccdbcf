"""A cluster in a few lines of text."""

from __future__ import annotations

from typing import Any


def cluster_text(address: str, cluster: Any) -> str:
    """Group, queue and models of a `ClusterSnapshot`."""
    lines = [f"{address}: {_group(cluster)}"]
    if cluster.queue.running or cluster.queue.waiting:
        lines.append(f"{cluster.queue.running} running, {cluster.queue.waiting} waiting")
    lines += [_model(card) for card in cluster.models] or ["no models"]
    return "\n".join(lines)


def _group(cluster: Any) -> str:
    group = cluster.group
    if group.state == "ready":
        meshes = f" ({', '.join(group.meshes)})" if group.meshes else ""
        on_cpu = all(node.device == "cpu" for node in cluster.nodes if node.rank is not None)
        kind = "CPU processes" if on_cpu else "GPUs"
        return f"{group.world_size} {kind} ready{meshes}"
    problem = f": {group.problem}" if group.problem else ""
    if group.state == "forming":
        return f"the GPU group is forming{problem}"
    own = "the coordinator samples itself" if cluster.local.available else "nothing can sample"
    return f"no GPU group, {own}{problem}"


def _model(card: Any) -> str:
    where = [
        name for name, there in (("group", card.on_group), ("coordinator", card.on_local)) if there
    ]
    extras = ["prompts and pictures"] if card.has_pipeline else []
    size = f"{card.parameters / 1e9:.1f} B" if card.parameters >= 5e7 else f"{card.parameters:,}"
    return f"{card.name} ({card.family}, {size} parameters; {', '.join(where + extras)})"
