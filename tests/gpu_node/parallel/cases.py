"""Meshes, inputs and tolerances that the tests of this folder share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ditmesh.mesh import MeshSpec
from ditmesh.models.family import Conditioning

GOLDEN = Path(__file__).parents[2] / "golden"
SINGLE_FILE = GOLDEN / "tiny_flux_bfl.safetensors"

EXACT = 2e-6
"""Largest difference from one process in fp32, for values up to 5: some units in the last place."""

ALL = tuple(range(8))
ULYSSES_8 = MeshSpec(ALL, ulysses=8)
CFG_2_ULYSSES_4 = MeshSpec(ALL, ulysses=4, cfg=2)
MESHES = (
    ULYSSES_8,
    MeshSpec((0, 1, 2, 3), ulysses=4),
    MeshSpec((2, 5), ulysses=2),
    MeshSpec((0, 7), ring=2),
    MeshSpec((1, 3, 6), ring=3),
    MeshSpec((0, 1, 2, 3), ulysses=2, ring=2),
    MeshSpec(ALL, ulysses=4, ring=2),
    MeshSpec(ALL, ring=8),
    CFG_2_ULYSSES_4,
    MeshSpec(ALL, ulysses=2, ring=2, cfg=2),
    MeshSpec((4,)),
)
"""Equal and unequal splits, overlapping sets of ranks, one rank alone: all in one epoch."""


@dataclass(frozen=True)
class Case:
    """A noisy latent and its guidance branches, which may differ in text length."""

    height: int
    width: int
    text_lengths: tuple[int, ...]
    batch: int = 1

    def inputs(self) -> tuple[Tensor, list[Conditioning]]:
        """Seeded: every process gets the same."""
        generator = torch.Generator().manual_seed(self.height * self.width)
        x_BCHW = torch.randn(self.batch, 16, self.height, self.width, generator=generator)
        branches = [
            Conditioning(
                torch.randn(1, length, 64, generator=generator),
                torch.randn(1, 32, generator=generator),
            )
            for length in self.text_lengths
        ]
        return x_BCHW, branches


CASES = (
    Case(16, 16, (16, 16)),  # everything divides by eight
    Case(18, 22, (77, 13)),  # 99 image tokens; nothing divides
    Case(62, 66, (63, 77)),  # 31 x 33 image tokens
    Case(10, 14, (1,), batch=2),  # a single branch, a batch, fewer text tokens than ranks
    Case(4, 4, (2, 3)),  # fewer tokens than some meshes have ranks
)
