"""Membership of one epoch: meshes to work in, decisions to share, and the ways out.

Import after `xfuser_setup.prepare`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from ditmesh import __version__, rendezvous
from ditmesh.errors import GroupLost, InvalidMesh
from ditmesh.mesh import MeshSpec
from gpu_node.parallel import decisions, sockets, torch_groups, xfuser_state
from gpu_node.parallel.guard import Guard

LEAVE_DEADLINE_S = 10.0
"""Longest that tearing a group down may take before the process counts as lost."""
MEET_S = 20.0
"""Longest that ranks wait for one another at the store: all are told to join at once, and each may
have to leave an old group first."""
_POLL_S = 0.01


@dataclass(frozen=True)
class _Place:
    """One rank's groups in one mesh. A group of a single rank is None."""

    sequence: xfuser_state.SequenceGroup
    decisions: decisions.Decisions | None
    cfg_group: dist.ProcessGroup | None
    branch: int
    """Which guidance branch this rank works on; 0 without a cfg split."""


class Group:
    """Membership of one epoch, seen by one process. `join` makes it.

    One thread does all the work of a group; only `abort` may be called from another.
    """

    def __init__(
        self,
        epoch: int,
        rank: int,
        world_size: int,
        device: torch.device,
        timeout_s: float,
        aborted: threading.Event,
    ) -> None:
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.timeout_s = timeout_s
        self._places: dict[MeshSpec, _Place] = {}
        self._addresses: frozenset[sockets.Address] = frozenset()
        self._store_addresses: frozenset[sockets.Address] = frozenset()
        self._aborted = aborted
        self._left = False
        self._decisions: dict[MeshSpec, decisions.Decisions] = {}

    @property
    def meshes(self) -> tuple[MeshSpec, ...]:
        """The meshes that this rank is part of."""
        return tuple(self._places)

    @property
    def aborted(self) -> bool:
        """Whether it was aborted, from outside or by a failure; it is of no more use."""
        return self._aborted.is_set()

    @property
    def left(self) -> bool:
        """Whether this process is out of it, and free to join another."""
        return self._left

    def use(self, mesh: MeshSpec) -> None:
        """Have xfuser work in `mesh` until it is told of another, or this process leaves.

        Raises:
            InvalidMesh: this rank is not in that mesh, or the epoch does not have it.
        """
        xfuser_state.install(self._place(mesh).sequence)

    def collective(self) -> AbstractContextManager[None]:
        """Turn what a failing collective raises inside the block into GroupLost.

        A rank that leaves the block by an error takes the group with it: it closes its
        connections, so that no other rank waits for it until the timeout. Only an InvalidRequest,
        which every rank raises alike, leaves the group whole. On CUDA, work that the block queued
        is waited for, and a block that takes longer than the group's timeout aborts the group:
        NCCL itself would wait for good.

        Raises:
            GroupLost: another rank died, hung or closed its connection, or `abort` was called.
        """
        # gloo keeps the groups' timeouts itself.
        return self._watched() if self.device.type == "cuda" else Guard(self)

    def decide(self, mesh: MeshSpec, values: Sequence[int]) -> list[int]:
        """The integers (64 bit) that the mesh's first rank passed, on each of its ranks.

        A few bytes between CPUs: on CUDA it waits for no kernel. All ranks of the mesh pass
        equally many values. The first rank does not wait for the others: a decision of its own
        that could not be sent is an error of one of its next.

        Raises:
            GroupLost: as `collective`.
        """
        place = self._place(mesh)
        with Guard(self):
            return list(values) if place.decisions is None else place.decisions.share(values)

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
        if self._left:
            return
        self._places.clear()
        for end in self._decisions.values():
            end.close()
        self._decisions.clear()
        xfuser_state.clear()
        if not torch_groups.destroy(LEAVE_DEADLINE_S):
            raise GroupLost(f"epoch {self.epoch} cannot be torn down; restart rank {self.rank}")
        self._left = True

    def abort(self) -> None:
        """Free a thread that waits in a collective: it raises GroupLost. From any thread.

        gloo's connections are closed; NCCL's communicators are aborted. The waiting thread calls
        `leave` afterwards.

        Raises:
            GroupLost: NCCL does not let go; this process has to be replaced.
        """
        self._aborted.set()
        sockets.shut(self._addresses)
        # While groups are being made, that is what a rank waits for.
        sockets.shut_to(self._store_addresses)
        if self.device.type == "cuda" and not torch_groups.abort_nccl(LEAVE_DEADLINE_S):
            raise GroupLost(f"NCCL cannot be aborted; restart rank {self.rank}")

    def form(self, store: Store, meshes: Sequence[MeshSpec]) -> None:
        """Meet the other ranks; `runtime.join` calls it, once."""
        self._meet(store)
        self._store_addresses = sockets.of_store(store)
        self._compare_versions(store)
        already = sockets.listening()
        groups = torch_groups.connect(
            store,
            rank=self.rank,
            world_size=self.world_size,
            rank_sets=torch_groups.rank_sets(meshes),
            timeout_s=self.timeout_s,
            device=self.device,
        )
        mine = sockets.listening() - already
        tellers = []
        for mesh, teller in decisions.invite(store, meshes, self.rank, mine, self.timeout_s):
            self._decisions[mesh] = teller
            tellers.append(teller)
        mine |= {teller.address for teller in tellers}
        self._addresses = sockets.exchange(store, self.rank, self.world_size, mine)
        with Guard(self):
            for mesh, end in decisions.follow(store, meshes, self.rank, self.timeout_s):
                self._decisions[mesh] = end
        self._store_addresses = frozenset()
        for mesh in meshes:
            if self.rank in mesh.ranks:
                self._places[mesh] = self._find_place(mesh, groups)
        with self.collective():
            torch_groups.warm_up(groups, self.device)
            # Whoever follows has connected before it came to that.
            for teller in tellers:
                teller.accept()

    def _meet(self, store: Store) -> None:
        """Wait for every rank at the store. torch would wait there too, but deaf to `abort`.

        Raises:
            GroupLost: some did not come in time, or `abort` was called.
        """
        store.set(rendezvous.arrival(self.rank), __version__)
        keys = [rendezvous.arrival(rank) for rank in range(self.world_size)]
        patience_s = min(self.timeout_s, MEET_S)
        end = time.monotonic() + patience_s
        while not self._aborted.is_set():
            if store.check(keys):
                return
            self._aborted.wait(_POLL_S)
            if time.monotonic() > end:
                late = [rank for rank, key in enumerate(keys) if not store.check([key])]
                raise GroupLost(
                    f"epoch {self.epoch} could not be formed: of {self.world_size} ranks, "
                    f"{', '.join(map(str, late))} did not come in {patience_s:g} s"
                )
        # Nobody else shall go on with this rank.
        store.delete_key(rendezvous.arrival(self.rank))
        raise GroupLost(f"epoch {self.epoch} was aborted while rank {self.rank} waited")

    def _compare_versions(self, store: Store) -> None:
        """What ranks tell one another, and how they round, differs from version to version.

        Raises:
            GroupLost: not all are of one version.
        """
        keys = [rendezvous.arrival(rank) for rank in range(self.world_size)]
        # Empty: one from before they told.
        versions = {store.get(key).decode() or "unknown" for key in keys}
        if len(versions) > 1:
            raise GroupLost(
                f"epoch {self.epoch} could not be formed: its ranks are of versions "
                f"{', '.join(sorted(versions))} of ditmesh; install one version on all nodes"
            )

    def _find_place(self, mesh: MeshSpec, groups: torch_groups.Groups) -> _Place:
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
            self._decisions.get(mesh),
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
    def _watched(self) -> Iterator[None]:
        timer = threading.Timer(self.timeout_s, self.abort)
        timer.daemon = True
        with Guard(self):
            timer.start()
            try:
                yield
                torch.cuda.synchronize(self.device)
            finally:
                timer.cancel()
