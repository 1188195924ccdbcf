"""What the ranks of a mesh agree on before each step."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, cast

import torch

from ditmesh.errors import BadResult, GroupLost, RanksDiffer
from ditmesh.executor.control import StopFlag, StopReason, require_finite
from ditmesh.mesh import MeshSpec
from ditmesh.sampling import State

if TYPE_CHECKING:
    from gpu_node.parallel.group import Group


class MeshControl:
    """Before each step the mesh's first rank decides, and all compare their states.

    The broadcast carries the decision, the job and a checksum of the leader's latent: a rank that
    is at another job or step, or holds another latent, must not go on.
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
        checksum, finite = _checksum(state.latent)
        reason = self._flag.reason()
        mine = [int(reason), state.step, checksum, int(finite), self._job]
        decided = self._group.decide(self._mesh, mine)
        if decided[-1] != self._job:
            self._group.abort()
            raise GroupLost(f"rank {self._group.rank} is at another job than the leader")
        if decided[1:] != mine[1:]:
            self._group.abort()
            raise RanksDiffer(
                f"rank {self._group.rank} is at step {state.step} with checksum {checksum}, the "
                f"leader at step {decided[1]} with {decided[2]}"
            )
        if not finite:
            raise BadResult(
                f"the latent is not finite after step {state.step}: the model's output overflowed"
            )
        return cast(StopReason, decided[0])


def _checksum(latent: torch.Tensor) -> tuple[int, bool]:
    """A sum over an fp32 latent's bits, and whether every value is finite; one look at the device.

    The largest value and the least are NaN where any value is.
    """
    flat = latent.contiguous().view(-1)
    # Two values at a time, where they are even in number: half the additions, which wrap around.
    bits = flat.view(torch.int32 if flat.numel() % 2 else torch.int64).sum(dtype=torch.int64)
    ends = torch.stack(torch.aminmax(flat))
    both = torch.stack([bits, torch.isfinite(ends).all().to(torch.int64)]).tolist()
    return int(both[0]), bool(both[1])
