"""A mesh: ranks of a group and how they share one model, checked as plain integers.

A mesh has `ulysses * ring * cfg` ranks. Position `i` of `ranks` works on guidance branch
`i // (ulysses * ring)`; within a branch, on position `i % (ulysses * ring)` of its sequence:
Ulysses runs over neighbours, ring over strides, so that the chattier Ulysses stays local.

- Ulysses (https://arxiv.org/abs/2309.14509) exchanges tokens for heads around each attention, so
  its degree must divide the number of heads.
- Ring attention (https://arxiv.org/abs/2310.01889) passes keys and values around; any degree.
- The cfg split runs the two branches of classifier-free guidance side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ditmesh.errors import InvalidMesh

CFG_DEGREES = (1, 2)
"""Classifier-free guidance has two branches, so it splits in two or not at all."""


@dataclass(frozen=True)
class MeshSpec:
    """Which ranks of a group form a mesh, in which order, with which degrees."""

    ranks: tuple[int, ...]
    ulysses: int = 1
    ring: int = 1
    cfg: int = 1

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    @property
    def sequence_parallel(self) -> int:
        """Ranks that share one sequence."""
        return self.ulysses * self.ring

    def branch_ranks(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of each guidance branch, one tuple if there is no cfg split."""
        step = self.sequence_parallel
        return tuple(self.ranks[at : at + step] for at in range(0, self.size, step))

    def ulysses_groups(self) -> tuple[tuple[int, ...], ...]:
        """Every set of ranks that exchange heads for tokens."""
        return tuple(
            branch[at : at + self.ulysses]
            for branch in self.branch_ranks()
            for at in range(0, len(branch), self.ulysses)
        )

    def ring_groups(self) -> tuple[tuple[int, ...], ...]:
        """Every set of ranks that pass keys and values around, in ring order."""
        return tuple(
            branch[at :: self.ulysses]
            for branch in self.branch_ranks()
            for at in range(self.ulysses)
        )

    def cfg_groups(self) -> tuple[tuple[int, ...], ...]:
        """Every set of ranks at the same place of different branches."""
        return tuple(zip(*self.branch_ranks(), strict=True))

    def __str__(self) -> str:
        """For people: degrees of one are left out."""
        degrees = {"ulysses": self.ulysses, "ring": self.ring, "cfg": self.cfg}
        shown = [f"{name}={degree}" for name, degree in degrees.items() if degree != 1]
        ranks = ",".join(str(rank) for rank in self.ranks)
        return f"{' '.join(shown) or 'single'} on ranks {ranks}"

    def validate(self, *, world_size: int, num_heads: int | None = None) -> None:
        """Check the mesh against a group of `world_size` ranks and a model of `num_heads`.

        Raises:
            InvalidMesh: says which number is wrong, why, and what would be right.
        """
        for name, degree in (("ulysses", self.ulysses), ("ring", self.ring)):
            if degree < 1:
                raise InvalidMesh(f"{name}={degree}: a degree is at least 1", field=name)
        if self.cfg not in CFG_DEGREES:
            raise InvalidMesh(
                f"cfg={self.cfg}: guidance has two branches, so cfg is 1 or 2", field="cfg"
            )
        needed = self.ulysses * self.ring * self.cfg
        if needed != self.size:
            raise InvalidMesh(
                f"ulysses={self.ulysses} x ring={self.ring} x cfg={self.cfg} needs {needed} ranks, "
                f"the mesh names {self.size}",
                field="ranks",
            )
        self._validate_ranks(world_size)
        if num_heads is not None and num_heads % self.ulysses:
            fitting = [str(degree) for degree in _divisors(num_heads)]
            raise InvalidMesh(
                f"ulysses={self.ulysses} does not divide the model's {num_heads} heads; "
                f"{', '.join(fitting)} would, and ring takes any degree",
                field="ulysses",
            )

    def _validate_ranks(self, world_size: int) -> None:
        outside = [rank for rank in self.ranks if not 0 <= rank < world_size]
        if outside:
            raise InvalidMesh(
                f"rank {outside[0]} is not in a group of {world_size}: ranks are 0 to "
                f"{world_size - 1}",
                field="ranks",
            )
        repeated = [rank for rank, count in Counter(self.ranks).items() if count > 1]
        if repeated:
            raise InvalidMesh(
                f"rank {repeated[0]} appears more than once; each rank has one place in a mesh",
                field="ranks",
            )
        if list(self.ranks) != sorted(self.ranks):
            raise InvalidMesh(
                f"ranks {','.join(map(str, self.ranks))} do not ascend; process groups number "
                "their members in that order",
                field="ranks",
            )


def largest_mesh(
    ranks: Sequence[int], num_heads: int, *, cfg: int = 1, max_ring: int | None = None
) -> MeshSpec | None:
    """The mesh that uses the most of `ranks`, or None if not even one rank is there.

    Among meshes of one size it prefers the higher Ulysses degree, which moves less data than
    ring does for the same work; ring takes what does not divide the heads (7 ranks and 24 heads:
    ring 7). With `max_ring=1` only pure Ulysses is considered (6 ranks of those 7). With `cfg=2`
    the ranks are split over both guidance branches if there are at least two. The first ranks of
    the sequence are the ones used.
    """
    if cfg not in CFG_DEGREES:
        raise InvalidMesh(f"cfg={cfg}: guidance has two branches, so cfg is 1 or 2", field="cfg")
    if num_heads < 1:
        raise InvalidMesh(f"a model of {num_heads} heads cannot be split", field="ulysses")
    split = cfg if len(ranks) >= cfg else 1
    for length in range(len(ranks) // split, 0, -1):
        for ulysses in sorted(_divisors(length), reverse=True):
            ring = length // ulysses
            if num_heads % ulysses == 0 and (max_ring is None or ring <= max_ring):
                return MeshSpec(tuple(sorted(ranks[: length * split])), ulysses, ring, split)
    return None


def parse_mesh(text: str, world_size: int) -> MeshSpec:
    """A mesh on the first ranks of a group, from words like `ulysses=2,ring=2,cfg=2`.

    `auto` is Ulysses over the whole group. Degrees that are left out are 1.

    Raises:
        InvalidMesh: the words make no mesh, or need more ranks than the group has.
    """
    if text.strip() == "auto":
        return MeshSpec(tuple(range(world_size)), ulysses=world_size)
    degrees: dict[str, int] = {}
    for word in text.split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        if name not in ("ulysses", "ring", "cfg") or not equals or not value.isdecimal():
            raise InvalidMesh(
                f"{word.strip()!r} in mesh {text!r}: write e.g. ulysses=2,ring=2,cfg=2",
                field="mesh",
            )
        if name in degrees:
            raise InvalidMesh(f"mesh {text!r} gives {name} twice", field="mesh")
        degrees[name] = int(value)
    size = degrees.get("ulysses", 1) * degrees.get("ring", 1) * degrees.get("cfg", 1)
    if size > world_size:
        raise InvalidMesh(
            f"mesh {text!r} needs {size} ranks, the group has {world_size}", field="mesh"
        )
    mesh = MeshSpec(tuple(range(size)), **degrees)
    mesh.validate(world_size=world_size)
    return mesh


def _divisors(number: int) -> Iterator[int]:
    return (divisor for divisor in range(1, number + 1) if number % divisor == 0)
