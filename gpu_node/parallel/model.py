"""A model that the ranks of a mesh evaluate together; the interface of `ditmesh.models.model`.

Every rank calls the same methods with equal arguments, which reach it from outside the group, and
every rank gets equal bits back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ditmesh.mesh import MeshSpec
from ditmesh.models.family import Conditioning, Family
from ditmesh.models.info import ModelInfo
from ditmesh.models.loading import load
from ditmesh.models.model import place
from ditmesh.models.registry import family
from gpu_node.execution import Execution
from gpu_node.parallel.runtime import make_ready, transformer_class

if TYPE_CHECKING:
    from gpu_node.parallel.group import Group


class MeshModel:
    """A transformer, whole on each rank, whose tokens and guidance branches a mesh shares.

    Cheap to make: after a group has re-formed, make another around the same `transformer`.
    """

    def __init__(
        self, info: ModelInfo, transformer: nn.Module, group: Group, mesh: MeshSpec
    ) -> None:
        mesh.validate(world_size=group.world_size, num_heads=info.num_heads)
        self.info = info
        self.family: Family = family(info.family)
        self.transformer = transformer
        self.group = group
        self.mesh = mesh
        weight = next(transformer.parameters())
        self.device = weight.device
        self.dtype = weight.dtype

    @torch.no_grad()
    def evaluate(
        self, x_BCHW: Tensor, sigma: Tensor | float, branches: Sequence[Conditioning]
    ) -> list[Tensor]:
        """The denoised latent, fp32 [B,C,H,W], for each guidance branch.

        With a cfg split, branches go in pairs, one to each half of the mesh; a branch without a
        partner is computed by both halves.

        Raises:
            GroupLost: another rank died, hung or left.
        """
        x, sigma_B = place(x_BCHW, sigma, self.device)
        outputs: list[Tensor] = []
        with self.group.use(self.mesh), self.group.collective():
            while len(outputs) < len(branches):
                outputs += self._forward(x, sigma_B, branches[len(outputs) :][: self.mesh.cfg])
        return [self.family.denoised(x, sigma_B, output) for output in outputs]

    @torch.no_grad()
    def predict(self, x_BCHW: Tensor, sigma: Tensor | float, cond: Conditioning) -> Tensor:
        """The transformer's raw output, [B,C,H,W] in its dtype, for a single branch.

        Raises:
            GroupLost: another rank died, hung or left.
        """
        x, sigma_B = place(x_BCHW, sigma, self.device)
        with self.group.use(self.mesh), self.group.collective():
            (output,) = self._forward(x, sigma_B, [cond])
        return output

    def _forward(
        self, x_BCHW: Tensor, sigma_B: Tensor, branches: Sequence[Conditioning]
    ) -> list[Tensor]:
        split = len(branches) == self.mesh.cfg
        cond = branches[self.group.branch(self.mesh)] if split else branches[0]
        output = self.family.forward(self.transformer, x_BCHW, sigma_B, cond)
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
