"""Which meshes a group of so many nodes gets, for the models that are served."""

from __future__ import annotations

from dataclasses import dataclass

from ditmesh.errors import InvalidMesh
from ditmesh.mesh import MeshSpec, largest_mesh, parse_mesh

MAIN = 0
"""Index of the mesh that runs whole forward passes."""
SPLIT = 1
"""Index of the mesh that runs guidance branches side by side, where there is one."""


@dataclass(frozen=True)
class MeshPlan:
    """Turns a number of healthy nodes into meshes.

    `degrees` applies while there are nodes enough for them; a smaller group gets the largest mesh
    that the models' heads allow. `cfg_split` adds a mesh with half of the ranks on each branch.
    """

    expected: int
    degrees: str = "auto"
    cfg_split: bool = False
    min_ranks: int = 1

    def __post_init__(self) -> None:
        """Raises InvalidMesh for numbers that no model could make fit."""
        if not self.expected:
            return
        if not 1 <= self.min_ranks <= self.expected:
            raise InvalidMesh(
                f"min_ranks={self.min_ranks}: must be 1 to {self.expected}, the nodes there are"
            )
        if self.degrees != "auto":
            parse_mesh(self.degrees, self.expected)

    def meshes(self, healthy: int, heads: int) -> tuple[MeshSpec, ...]:
        """The main mesh, then the split one if wanted and possible; empty: no group.

        `heads` is the greatest common divisor of the models' head counts. Raises InvalidMesh
        when the configured degrees do not divide them.
        """
        healthy = min(healthy, self.expected)
        if not heads or healthy < max(self.min_ranks, 1):
            return ()
        main = self._main(healthy, heads)
        if main is None or main.size < self.min_ranks:
            return ()
        split = self._split(main, heads) if self.cfg_split else None
        return (main,) if split is None else (main, split)

    def _main(self, healthy: int, heads: int) -> MeshSpec | None:
        if self.degrees != "auto":
            mesh = parse_mesh(self.degrees, self.expected)
            if mesh.size <= healthy:
                mesh.validate(world_size=healthy, num_heads=heads)
                return mesh
        return largest_mesh(range(healthy), heads)

    def _split(self, main: MeshSpec, heads: int) -> MeshSpec | None:
        if main.cfg != 1 or main.size % 2:
            return None
        half = largest_mesh(main.ranks[: main.size // 2], heads)
        if half is None or half.size * 2 != main.size:
            return None
        return MeshSpec(main.ranks, half.ulysses, half.ring, 2)
