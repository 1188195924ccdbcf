"""Membership of a process group: join an epoch, work in its meshes, leave or abort, join again.

This is where torch.distributed lives. The coordinator hosts the store; each epoch has a prefix of
its own in it, so that nothing of an earlier group is ever read. Every process group, subgroups
included, has a timeout, and all ranks create all of them in one order when they join.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store

from ditmesh.errors import GroupLost, InternalError, InvalidMesh, InvalidRequest
from ditmesh.mesh import MeshSpec
from gpu_node.parallel import sockets
from gpu_node.parallel.xfuser_setup import prepare, require_prepared

__all__ = ["Group", "join", "prepare", "transformer_class"]

log = logging.getLogger(__name__)

LOOPBACK = "lo"
LEAVE_DEADLINE_S = 10.0
"""Longest that tearing a group down may take before the process counts as lost."""

_active: Group | None = None


@dataclass(frozen=True)
class _Place:
    """One rank's groups in one mesh. A group of a single rank is None."""

    sequence: object
    """xfuser's view, a `xfuser_state.SequenceGroup`."""
    mesh_group: dist.ProcessGroup | None
    cfg_group: dist.ProcessGroup | None
    branch: int
    """Which guidance branch this rank works on; 0 without a cfg split."""


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

    Raises:
        InvalidMesh: a mesh does not fit the world.
        GroupLost: the others did not come in time, or a connection failed.
        InternalError: `prepare` was not called, or this process is still in a group.

    """
    global _active
    require_prepared()
    if _active is not None:
        raise InternalError(f"still in epoch {_active.epoch}; leave it before joining {epoch}")
    for mesh in meshes:
        mesh.validate(world_size=world_size)
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ["NCCL_SOCKET_IFNAME"] = interface
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    group = Group(epoch, rank, world_size, device, timeout_s)
    _active = group
    try:
        group._form(PrefixStore(f"epoch/{epoch}", store), meshes)
    except RuntimeError as error:
        group.leave()
        raise GroupLost(f"epoch {epoch} could not be formed: {_first_line(error)}") from error
    except BaseException:
        group.leave()
        raise
    return group


def transformer_class(family: str) -> type[nn.Module]:
    """The transformer of a family for several ranks.

    Raises:
        InvalidMesh: the family runs on one rank only.

    """
    require_prepared()
    # xfuser can be imported only once `prepare` has adjusted it.
    from gpu_node.parallel.transformer import ExactFlux

    classes: dict[str, type[nn.Module]] = {"flux": ExactFlux}
    if family not in classes:
        raise InvalidMesh(f"models of family {family!r} run on one rank only", field="mesh")
    return classes[family]


class Group:
    """Membership of one epoch, seen by one process. `join` makes it.

    One thread does all the work of a group; only `abort` may be called from another.
    """

    def __init__(
        self, epoch: int, rank: int, world_size: int, device: torch.device, timeout_s: float
    ) -> None:
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.timeout_s = timeout_s
        self._places: dict[MeshSpec, _Place] = {}
        self._addresses: frozenset[sockets.Address] = frozenset()
        self._aborted = threading.Event()
        self._left = False

    @property
    def meshes(self) -> tuple[MeshSpec, ...]:
        """The meshes that this rank is part of."""
        return tuple(self._places)

    @property
    def aborted(self) -> bool:
        """Whether `abort` was called; the group is of no more use."""
        return self._aborted.is_set()

    @contextmanager
    def use(self, mesh: MeshSpec) -> Iterator[None]:
        """Have xfuser work in `mesh` inside the block.

        Raises:
            InvalidMesh: this rank is not in that mesh, or the epoch does not have it.

        """
        from gpu_node.parallel import xfuser_state

        sequence = self._place(mesh).sequence
        assert isinstance(sequence, xfuser_state.SequenceGroup)
        with xfuser_state.installed(sequence):
            yield

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Turn what a failing collective raises inside the block into GroupLost.

        A rank that leaves the block by an error takes the group with it: it closes its
        connections, so that no other rank waits for it until the timeout. Only an InvalidRequest,
        which every rank raises alike, leaves the group whole. On CUDA, work that the block queued
        is waited for, and a block that takes longer than the group's timeout aborts the group:
        NCCL itself would wait for good.

        Raises:
            GroupLost: another rank died, hung or closed its connection, or `abort` was called.

        """
        with self._guard(), self._watch():
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        if self.aborted or self._left:
            raise GroupLost(f"rank {self.rank} is no longer in epoch {self.epoch}")
        try:
            yield
        except InvalidRequest:
            raise
        except BaseException as error:
            collateral = self.aborted
            self.abort()
            if not isinstance(error, RuntimeError):
                raise
            if not collateral and not _is_collective_failure(error):
                raise
            raise GroupLost(
                f"rank {self.rank} lost the group of epoch {self.epoch}: {_first_line(error)}"
            ) from error
        if self.aborted:
            raise GroupLost(f"epoch {self.epoch} was aborted on rank {self.rank}")

    def decide(self, mesh: MeshSpec, values: Sequence[int]) -> list[int]:
        """The integers (64 bit) that the mesh's first rank passed, on each of its ranks.

        One small broadcast between CPUs, through gloo: on CUDA it waits for no kernel. All ranks
        of the mesh pass equally many values.

        Raises:
            GroupLost: as `collective`.

        """
        place = self._place(mesh)
        decision = torch.tensor(list(values), dtype=torch.int64)
        with self._guard():
            if place.mesh_group is not None:
                dist.broadcast(decision, src=mesh.ranks[0], group=place.mesh_group)
        return [int(value) for value in decision.tolist()]

    def branch(self, mesh: MeshSpec) -> int:
        """Which guidance branch this rank works on in `mesh`; 0 without a cfg split."""
        return self._place(mesh).branch

    def gather_branches(self, mesh: MeshSpec, output: Tensor) -> list[Tensor]:
        """Each branch's output, of equal shape, on every rank; just one without a cfg split."""
        group = self._place(mesh).cfg_group
        if group is None:
            return [output]
        outputs = [torch.empty_like(output) for _ in range(mesh.cfg)]
        dist.all_gather(outputs, output.contiguous(), group=group)
        return outputs

    def leave(self) -> None:
        """Forget the group, xfuser's and yunchang's globals included; `join` works again.

        Harmless where the group is broken or already left.

        Raises:
            GroupLost: tearing it down hangs; this process has to be replaced.

        """
        global _active
        from gpu_node.parallel import xfuser_state

        if self._left:
            return
        self._left = True
        self._places.clear()
        xfuser_state.clear()
        if not _finishes(_destroy, LEAVE_DEADLINE_S):
            raise GroupLost(f"epoch {self.epoch} cannot be torn down; restart rank {self.rank}")
        _active = None

    def abort(self) -> None:
        """Free a thread that waits in a collective: it raises GroupLost. From any thread.

        gloo's connections are closed; NCCL's communicators are aborted. The waiting thread calls
        `leave` afterwards.

        Raises:
            GroupLost: NCCL does not let go; this process has to be replaced.

        """
        self._aborted.set()
        sockets.shut(self._addresses)
        if self.device.type == "cuda" and not _finishes(_abort_nccl, LEAVE_DEADLINE_S):
            raise GroupLost(f"NCCL cannot be aborted; restart rank {self.rank}")

    def _form(self, store: Store, meshes: Sequence[MeshSpec]) -> None:
        timeout = timedelta(seconds=self.timeout_s)
        store.set_timeout(timeout)
        already = sockets.listening()
        # Groups are named by a counter that a join which failed half way leaves advanced; all
        # ranks must start at the same number.
        dist.distributed_c10d._world.group_count = 0
        dist.init_process_group(
            _backend(self.device),
            store=store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=timeout,
        )
        groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
        for ranks in _rank_sets(meshes):
            if len(ranks) == self.world_size:
                groups[ranks] = dist.group.WORLD
                continue
            created = dist.new_group(list(ranks), timeout=timeout)
            groups[ranks] = created if self.rank in ranks else None
        mine = sockets.listening() - already
        self._addresses = sockets.exchange(store, self.rank, self.world_size, mine)
        for mesh in meshes:
            if self.rank in mesh.ranks:
                self._places[mesh] = self._find_place(mesh, groups)
        for group in groups.values():
            if group is not None:
                # Connects NCCL now, not in the middle of the first step.
                dist.all_reduce(torch.zeros(1, device=self.device), group=group)

    def _find_place(
        self, mesh: MeshSpec, groups: dict[tuple[int, ...], dist.ProcessGroup | None]
    ) -> _Place:
        from gpu_node.parallel import xfuser_state

        def mine(candidates: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
            return next(ranks for ranks in candidates if self.rank in ranks)

        branches = mesh.branch_ranks()
        sequence = xfuser_state.SequenceGroup(
            mine(branches),
            self.rank,
            self.device,
            ulysses=mesh.ulysses,
            group=groups.get(mine(branches)),
            ulysses_group=groups.get(mine(mesh.ulysses_groups())),
            ring_group=groups.get(mine(mesh.ring_groups())),
        )
        return _Place(
            sequence,
            groups.get(mesh.ranks),
            groups.get(mine(mesh.cfg_groups())),
            branches.index(mine(branches)),
        )

    def _place(self, mesh: MeshSpec) -> _Place:
        try:
            return self._places[mesh]
        except KeyError:
            raise InvalidMesh(
                f"rank {self.rank} has no place in mesh {mesh} in epoch {self.epoch}", field="mesh"
            ) from None

    @contextmanager
    def _watch(self) -> Iterator[None]:
        if self.device.type != "cuda":  # gloo keeps the groups' timeouts itself
            yield
            return
        timer = threading.Timer(self.timeout_s, self.abort)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _backend(device: torch.device) -> str:
    """Decisions go through gloo on the CPU even where tensors go through NCCL."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _rank_sets(meshes: Sequence[MeshSpec]) -> list[tuple[int, ...]]:
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
            log.warning("tearing a group down: %s", _first_line(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(deadline_s)
    return not thread.is_alive()


def _is_collective_failure(error: RuntimeError) -> bool:
    """Whether gloo (RuntimeErrors that carry its source path) or NCCL (classes) raised it."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
