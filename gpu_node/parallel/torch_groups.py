"""torch.distributed's process groups: made, torn down, aborted, and heard when they fail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from ditmesh.mesh import MeshSpec

log = logging.getLogger(__name__)

Groups = dict[tuple[int, ...], dist.ProcessGroup | None]
"""By their ranks; None where this process is not one of them."""


def connect(
    store: Store,
    *,
    rank: int,
    world_size: int,
    rank_sets: Sequence[tuple[int, ...]],
    timeout_s: float,
    device: torch.device,
) -> Groups:
    """Make the world and a group for each of `rank_sets`, every one with the timeout.

    Decisions go through gloo between CPUs even where tensors go through NCCL. All ranks pass the
    same sets in the same order. Raises RuntimeError if others do not come in time.
    """
    timeout = timedelta(seconds=timeout_s)
    store.set_timeout(timeout)
    # Groups are named by a counter that a start which failed half way leaves advanced; all ranks
    # must begin at the same number.
    dist.distributed_c10d._world.group_count = 0
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    groups: Groups = {}
    for ranks in rank_sets:
        if len(ranks) == world_size:
            groups[ranks] = dist.group.WORLD
            continue
        created = dist.new_group(list(ranks), timeout=timeout)
        groups[ranks] = created if rank in ranks else None
    return groups


def warm_up(groups: Groups, device: torch.device) -> None:
    """Use every group once: NCCL connects now, and not in the middle of the first step."""
    for group in groups.values():
        if group is not None:
            dist.all_reduce(torch.zeros(1, device=device), group=group)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rank_sets(meshes: Sequence[MeshSpec]) -> list[tuple[int, ...]]:
    """Every set of two or more ranks that needs a group, once each, in one order for all."""
    sets: dict[tuple[int, ...], None] = {}
    for mesh in meshes:
        for ranks in (
            mesh.ranks,
            *mesh.branch_ranks(),
            *mesh.ulysses_groups(),
            *mesh.ring_groups(),
            *mesh.cfg_groups(),
        ):
            if len(ranks) > 1:
                sets[ranks] = None
    return list(sets)


def destroy(deadline_s: float) -> bool:
    """Tear every group down; False if that hangs."""
    return _finishes(_destroy, deadline_s)


def abort_nccl(deadline_s: float) -> bool:
    """Abort every NCCL communicator, which frees whoever waits for one; False if that hangs."""
    return _finishes(_abort_nccl, deadline_s)


def is_failure(error: BaseException) -> bool:
    """Whether gloo (RuntimeErrors that carry its source path) or NCCL (classes) raised it."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def first_line(error: BaseException) -> str:
    """What torch says went wrong, without the C++ stack that follows."""
    return str(error).strip().split("\n", 1)[0]


def _destroy() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _abort_nccl() -> None:
    if dist.is_initialized():
        dist.distributed_c10d._abort_process_group()


def _finishes(action: Callable[[], None], deadline_s: float) -> bool:
    """Run `action` on a side thread; whether it returned, or raised, before the deadline."""

    def run() -> None:
        try:
            action()
        except RuntimeError as error:  # a broken group complains, and is gone all the same
            log.warning("tearing a group down: %s", first_line(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(deadline_s)
    return not thread.is_alive()
