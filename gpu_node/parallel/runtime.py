"""The doors of `gpu_node.parallel`: prepare a process, join an epoch, abort from any thread.

The coordinator hosts the store; each epoch has a prefix of its own in it, so that nothing of an
earlier group is ever read. Every process group, subgroups included, has a timeout, and all ranks
create all of them in one order when they join.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store

from ditmesh import rendezvous
from ditmesh.errors import GroupLost, InternalError, InvalidMesh
from ditmesh.mesh import MeshSpec
from gpu_node.execution import Execution
from gpu_node.parallel.torch_groups import first_line
from gpu_node.parallel.xfuser_setup import prepare, require_prepared

if TYPE_CHECKING:
    from gpu_node.parallel.group import Group

__all__ = ["Group", "abort", "check", "join", "make_ready", "prepare", "transformer_class"]

LOOPBACK = "lo"

_active: Group | None = None


def join(
    store: Store,
    *,
    epoch: int,
    rank: int,
    world_size: int,
    meshes: Sequence[MeshSpec],
    timeout_s: float,
    device: torch.device | str = "cpu",
    interface: str = LOOPBACK,
    aborted: threading.Event | None = None,
) -> Group:
    """Become `rank` of `world_size` in `epoch`; returns when all ranks have, groups connected.

    Args:
        store: the coordinator's store, a client of it; not shared with other threads meanwhile.
        epoch: never used before in this store.
        rank: this process's place.
        world_size: number of ranks.
        meshes: all meshes of the epoch, the same list on every rank.
        timeout_s: how long a collective, or the joining itself, may wait for another rank.
        device: `cpu` or `cuda:<index>`.
        interface: the network interface that gloo and NCCL listen on; the loopback's unless
            ranks are on several machines.
        aborted: set by whoever wants no such group any more, perhaps before there is one to
            `abort`.

    Raises:
        InvalidMesh: a mesh does not fit the world.
        GroupLost: the others did not come in time, or a connection failed.
        InternalError: `prepare` was not called, or this process is still in a group.
    """
    global _active
    require_prepared()
    # xfuser can be imported only once `prepare` has adjusted it, and so what builds on it.
    from gpu_node.parallel.group import Group

    if _active is not None and not _active.left:
        raise InternalError(f"still in epoch {_active.epoch}; leave it before joining {epoch}")
    for mesh in meshes:
        mesh.validate(world_size=world_size)
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ["NCCL_SOCKET_IFNAME"] = interface
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    aborted = aborted or threading.Event()
    group = Group(epoch, rank, world_size, device, timeout_s, aborted)
    _active = group
    try:
        group.form(PrefixStore(rendezvous.prefix(epoch), store), meshes)
    except (RuntimeError, OSError) as error:
        group.leave()
        raise GroupLost(f"epoch {epoch} could not be formed: {first_line(error)}") from error
    except BaseException:
        group.leave()
        raise
    return group


def abort() -> None:
    """Abort the group that this process is in or is joining, if any. From any thread.

    A join that waits for other ranks ends at once.

    Raises:
        GroupLost: as `Group.abort`.
    """
    group = _active
    if group is not None and not group.left:
        group.abort()


def transformer_class(family: str) -> type[nn.Module]:
    """The transformer of a family for several ranks.

    Raises:
        InvalidMesh: the family runs on one rank only.
    """
    require_prepared()
    from gpu_node.parallel.transformer import ExactFlux

    classes: dict[str, type[nn.Module]] = {"flux": ExactFlux}
    if family not in classes:
        raise InvalidMesh(f"models of family {family!r} run on one rank only", field="mesh")
    return classes[family]


def check(execution: Execution, device: torch.device, dtype: torch.dtype) -> None:
    """Try what `execution` asks of a rank's device, before any model is there.

    Raises:
        InvalidRequest: the attention kernel does not run on it; says why.
    """
    require_prepared()
    from gpu_node.parallel import attention

    attention.choose(execution.attention, device, dtype)


def make_ready(transformer: nn.Module, execution: Execution) -> nn.Module:
    """A transformer of one of `transformer_class`, to be run as `execution` says.

    Raises:
        InvalidRequest: as `check`.
        ExecutorFailed: the blocks cannot be compiled here.
    """
    require_prepared()
    from gpu_node.parallel import attention, compiling
    from gpu_node.parallel.transformer import ExactFlux

    assert isinstance(transformer, ExactFlux)
    transformer.kernel = attention.choose(
        execution.attention, transformer.device, transformer.dtype
    )
    if execution.compile:
        compiling.compile_blocks(transformer)
    return transformer
