"""What the ranks of a mesh agree on before each step."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, cast

import torch

from ditmesh.errors import GroupLost, RanksDiffer
from ditmesh.executor.control import (
    StopFlag,
    StopReason,
    all_finite,
    not_finite,
    require_finite,
)
from ditmesh.mesh import MeshSpec
from ditmesh.sampling import State

if TYPE_CHECKING:
    from gpu_node.parallel.group import Group


class MeshControl:
    """Before each step the mesh's first rank decides, and all compare their states.

    The leader sends the decision, the job, a checksum of its latent, and whether that
    is finite: a rank that is at another job or step, or holds another latent, must not go on.
    """

    def __init__(self, group: Group, mesh: MeshSpec, flag: StopFlag, job_id: str) -> None:
        self._group = group
        self._mesh = mesh
        self._flag = flag
        self._job = int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "big", signed=True)

    def agree(self, state: State) -> StopReason:
        """See `Control.agree`."""
        if len(self._mesh.ranks) == 1:
            require_finite(state)
            return self._flag.reason()
        leads = self._group.rank == self._mesh.ranks[0]
        checksum = _checksum(state.latent)
        # Who has the same bits need not look.
        finite = not leads or all_finite(state.latent)
        mine = [int(self._flag.reason()), self._job, state.step, checksum, int(finite)]
        reason, job, *theirs, finite_there = self._group.decide(self._mesh, mine)
        if job != self._job:
            self._group.abort()
            raise GroupLost(f"rank {self._group.rank} is at another job than the leader")
        if theirs != [state.step, checksum]:
            self._group.abort()
            raise RanksDiffer(
                f"rank {self._group.rank} is at step {state.step} with checksum {checksum}, the "
                f"leader at step {theirs[0]} with {theirs[1]}"
            )
        if not finite_there:
            raise not_finite(state)
        return cast(StopReason, reason)


def _checksum(latent: torch.Tensor) -> int:
    """A sum over an fp32 latent's bits."""
    flat = latent.contiguous().view(-1)
    # Two values at a time, where they are even in number: half the additions, which wrap around.
    bits = flat.view(torch.int32 if flat.numel() % 2 else torch.int64)
    return int(bits.sum(dtype=torch.int64))
