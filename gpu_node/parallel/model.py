"""A model that the ranks of a mesh evaluate together; see `ditmesh.models.model`.

Every rank calls the same methods with equal arguments, which reach it from outside the group, and
every rank gets equal bits back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ditmesh.mesh import MeshSpec
from ditmesh.models.family import Inputs
from ditmesh.models.info import ModelInfo
from ditmesh.models.loading import load
from ditmesh.models.model import Model
from gpu_node.execution import Execution
from gpu_node.parallel.runtime import make_ready, transformer_class

if TYPE_CHECKING:
    from gpu_node.parallel.group import Group


class MeshModel(Model):
    """A transformer, whole on each rank, whose tokens and guidance branches a mesh shares.

    Cheap to make: after a group has re-formed, make another around the same `transformer`.
    """

    def __init__(
        self, info: ModelInfo, transformer: nn.Module, group: Group, mesh: MeshSpec
    ) -> None:
        mesh.validate(world_size=group.world_size, num_heads=info.num_heads)
        super().__init__(info, transformer)
        self.group = group
        self.mesh = mesh

    def outputs(
        self, arranged: Tensor, sigma_B: Tensor, branches: Sequence[Inputs]
    ) -> list[Tensor]:
        """See `Model.outputs`.

        With a cfg split, branches go in pairs, one to each half of the mesh; a branch without a
        partner is computed by both halves.

        Raises:
            GroupLost: another rank died, hung or left.
        """
        outputs: list[Tensor] = []
        self.group.use(self.mesh)
        with self.group.collective():
            while len(outputs) < len(branches):
                pair = branches[len(outputs) :][: self.mesh.cfg]
                outputs += self._forward(arranged, sigma_B, pair)
        return outputs

    def _forward(
        self, arranged: Tensor, sigma_B: Tensor, branches: Sequence[Inputs]
    ) -> list[Tensor]:
        split = 1 < self.mesh.cfg == len(branches)
        inputs = branches[self.group.branch(self.mesh) if split else 0]
        output = self.family.forward(self.transformer, arranged, sigma_B, inputs)
        return self.group.gather_branches(self.mesh, output) if split else [output]


def load_transformer(
    info: ModelInfo,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    execution: Execution | None = None,
) -> nn.Module:
    """The transformer of `info` for several ranks, on this rank's device, ready to be run.

    `execution` says how it is to run, but for `dtype`; without it, in torch's own ways.

    Raises:
        DamagedModel: as `loading.load`.
        InvalidMesh: the model's family runs on one rank only.
        InvalidRequest: the attention kernel does not run here.
        ExecutorFailed: the blocks cannot be compiled here.
    """
    execution = execution or Execution()
    transformer = load(
        info,
        device=device,
        dtype=dtype,
        transformer_class=transformer_class(info.family),
        fp8_weights=execution.fp8_weights,
    )
    return make_ready(transformer, execution)
