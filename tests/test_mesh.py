"""Meshes as integers: what is accepted is valid, what is refused is explained."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditmesh.errors import InvalidMesh
from ditmesh.mesh import MeshSpec, largest_mesh, parse_mesh

small = st.integers(-1, 5)
heads = st.sampled_from([1, 2, 8, 24])


@given(
    ranks=st.lists(st.integers(-1, 9), max_size=9),
    ulysses=small,
    ring=small,
    cfg=st.integers(0, 3),
    world=st.integers(1, 9),
    num_heads=heads,
)
def test_accepted_meshes_are_valid_and_refusals_explain(
    ranks: list[int], ulysses: int, ring: int, cfg: int, world: int, num_heads: int
) -> None:
    """A mesh passes if and only if every rule holds; a refusal names a field and a number."""
    mesh = MeshSpec(tuple(ranks), ulysses, ring, cfg)
    sound = (
        ulysses >= 1
        and ring >= 1
        and cfg in (1, 2)
        and len(ranks) == ulysses * ring * cfg
        and all(0 <= rank < world for rank in ranks)
        and ranks == sorted(set(ranks))
        and num_heads % ulysses == 0
    )
    if sound:
        mesh.validate(world_size=world, num_heads=num_heads)
        return
    with pytest.raises(InvalidMesh) as caught:
        mesh.validate(world_size=world, num_heads=num_heads)
    assert caught.value.field in {"ulysses", "ring", "cfg", "ranks"}
    assert any(character.isdigit() for character in caught.value.message)


@given(
    start=st.integers(0, 3),
    ulysses=st.integers(1, 4),
    ring=st.integers(1, 4),
    cfg=st.sampled_from([1, 2]),
)
def test_groups_cover_the_mesh_as_a_grid(start: int, ulysses: int, ring: int, cfg: int) -> None:
    """Each kind of group has its degree's size and holds every rank exactly once.

    Any two ranks of a branch share at most one Ulysses or ring group, as rows and columns do.
    """
    ranks = tuple(range(start, start + ulysses * ring * cfg))
    mesh = MeshSpec(ranks, ulysses, ring, cfg)
    mesh.validate(world_size=start + len(ranks))
    for groups, size in (
        (mesh.branch_ranks(), ulysses * ring),
        (mesh.ulysses_groups(), ulysses),
        (mesh.ring_groups(), ring),
        (mesh.cfg_groups(), cfg),
    ):
        assert all(len(group) == size for group in groups)
        assert sorted(rank for group in groups for rank in group) == list(ranks)
    for row in mesh.ulysses_groups():
        for column in mesh.ring_groups():
            assert len(set(row) & set(column)) <= 1


@given(
    ranks=st.lists(st.integers(0, 20), unique=True, max_size=12),
    num_heads=heads,
    cfg=st.sampled_from([1, 2]),
    max_ring=st.sampled_from([None, 1, 2]),
)
def test_largest_mesh_is_valid_and_none_larger_exists(
    ranks: list[int], num_heads: int, cfg: int, max_ring: int | None
) -> None:
    """The chosen mesh passes validation, keeps to the limits, and no other uses more ranks."""
    mesh = largest_mesh(ranks, num_heads, cfg=cfg, max_ring=max_ring)
    if not ranks:
        assert mesh is None
        return
    assert mesh is not None
    mesh.validate(world_size=21, num_heads=num_heads)
    assert set(mesh.ranks) <= set(ranks)
    assert max_ring is None or mesh.ring <= max_ring
    split = cfg if len(ranks) >= cfg else 1
    assert mesh.cfg == split
    possible = [
        ulysses * ring * split
        for ulysses in range(1, 13)
        for ring in range(1, (max_ring or 12) + 1)
        if num_heads % ulysses == 0 and ulysses * ring * split <= len(ranks)
    ]
    assert mesh.size == max(possible)


@pytest.mark.parametrize(
    ("count", "num_heads", "expected"),
    [(8, 24, (8, 1)), (8, 8, (8, 1)), (7, 24, (1, 7)), (6, 24, (6, 1)), (8, 20, (4, 2))],
)
def test_largest_mesh_prefers_ulysses(
    count: int, num_heads: int, expected: tuple[int, int]
) -> None:
    """Among meshes of one size the one with the highest Ulysses degree wins."""
    mesh = largest_mesh(range(count), num_heads)
    assert mesh is not None
    assert (mesh.ulysses, mesh.ring) == expected


def test_largest_mesh_without_ring_gives_up_ranks() -> None:
    """With `max_ring=1`, seven ranks and 24 heads make a mesh of six."""
    mesh = largest_mesh(range(7), 24, max_ring=1)
    assert mesh == MeshSpec((0, 1, 2, 3, 4, 5), ulysses=6)


@pytest.mark.parametrize(
    ("text", "mesh"),
    [
        ("ulysses=8", MeshSpec(tuple(range(8)), 8)),
        ("ulysses=2, ring=2, cfg=2", MeshSpec(tuple(range(8)), 2, 2, 2)),
        ("ring=3", MeshSpec((0, 1, 2), 1, 3)),
        ("auto", MeshSpec(tuple(range(8)), 8)),
    ],
)
def test_parse_mesh(text: str, mesh: MeshSpec) -> None:
    """The words of a command line become a mesh on the first ranks."""
    assert parse_mesh(text, 8) == mesh


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "write e.g."),
        ("ulysses", "write e.g."),
        ("ulysses=x", "write e.g."),
        ("tensor=2", "write e.g."),
        ("ulysses=2,ulysses=2", "twice"),
        ("ulysses=16", "needs 16 ranks"),
        ("ulysses=0", "at least 1"),
        ("cfg=3", "1 or 2"),
    ],
)
def test_parse_mesh_refuses_with_a_reason(text: str, hint: str) -> None:
    """Words that make no mesh are refused, and the message says what to write."""
    with pytest.raises(InvalidMesh, match=hint):
        parse_mesh(text, 8)


def test_heads_that_do_not_divide_are_named_with_degrees_that_do() -> None:
    """The refusal of a Ulysses degree lists the degrees that this model allows."""
    with pytest.raises(InvalidMesh, match="1, 2, 3, 4, 6, 8, 12, 24 would") as caught:
        MeshSpec(tuple(range(5)), ulysses=5).validate(world_size=5, num_heads=24)
    assert caught.value.field == "ulysses"
