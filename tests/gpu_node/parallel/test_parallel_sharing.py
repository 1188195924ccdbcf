"""The ranks share the work: what each computes and what it receives, counted."""

from __future__ import annotations

import pytest

from ditmesh.mesh import MeshSpec
from tests.gpu_node.parallel import on_rank
from tests.gpu_node.parallel.cases import CFG_2_ULYSSES_4, MESHES, ULYSSES_8, Case
from tests.ranks import Ranks

HEADS, HEAD_DIM, BLOCKS, CHANNELS, FP32 = 8, 32, 2, 64, 4
"""Of the golden model: heads, their width, blocks, values of an image token, bytes of a value."""

DIVIDES = Case(16, 16, (16,))
"""64 image tokens and 16 text tokens."""

UNEVEN = Case(18, 22, (77,))
"""99 image tokens and 77 text tokens."""


@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if mesh.ring != 3], ids=str)
def test_each_rank_attends_with_its_share(eight: Ranks, mesh: MeshSpec) -> None:
    """Ulysses leaves each rank its heads, ring its queries, and both its tokens.

    Eight replicas would show all heads, all queries and all tokens on each rank.
    """
    for seen in eight.run(on_rank.shares, mesh, DIVIDES):
        if seen is None:
            continue
        queries = 80 // mesh.ring
        assert seen["queries"] == [(1, HEADS // mesh.ulysses, queries, HEAD_DIM)] * (
            BLOCKS * mesh.ring
        )
        assert seen["keys"] == seen["queries"]
        assert seen["tokens"] == [64 // mesh.sequence_parallel]


@pytest.mark.parametrize("mesh", MESHES[:8], ids=str)
def test_padding_is_never_attended_to(eight: Ranks, mesh: MeshSpec) -> None:
    """Where nothing divides, the keys of all ring blocks are the 176 real tokens, no more."""
    for seen in eight.run(on_rank.shares, mesh, UNEVEN):
        if seen is None:
            continue
        keys = [shape[2] for shape in seen["keys"]]
        for block in range(BLOCKS):
            assert sum(keys[block * mesh.ring : (block + 1) * mesh.ring]) == 176


@pytest.mark.parametrize(
    "mesh", [mesh for mesh in MESHES if mesh.ring == 1 and mesh.cfg == 1], ids=str
)
def test_ulysses_moves_the_bytes_it_should(eight: Ranks, mesh: MeshSpec) -> None:
    """Per block: query, key and value out and one output back, each (P-1)/P of a rank's tokens.

    DeepSpeed-Ulysses, section 3.2: 4 N h / P of aggregate traffic, of which a rank keeps 1/P.
    At the end the image tokens are gathered once.
    """
    ranks = mesh.ulysses
    own = 80 // ranks * HEADS * HEAD_DIM * FP32
    exchanged = BLOCKS * 4 * own * (ranks - 1) // ranks
    gathered = 64 // ranks * CHANNELS * FP32 * (ranks - 1)
    for seen in eight.run(on_rank.shares, mesh, DIVIDES):
        if seen is None:
            continue
        if ranks == 1:
            assert seen["bytes"] == {}
            continue
        assert seen["bytes"] == {"all_to_all": exchanged, "all_gather": gathered}
        assert seen["calls"] == {"all_to_all": 2 * BLOCKS, "all_gather": 1}


def test_ring_moves_keys_and_values_only(eight: Ranks) -> None:
    """Per block a rank receives the keys and values of all others, and no head changes hands."""
    mesh = MeshSpec(tuple(range(8)), ring=8)
    others = 7 * (80 // 8) * HEADS * HEAD_DIM * FP32
    gathered = 7 * (64 // 8) * CHANNELS * FP32
    for seen in eight.run(on_rank.shares, mesh, DIVIDES):
        assert seen["bytes"] == {"all_gather": BLOCKS * 2 * others + gathered}


def test_the_cfg_split_halves_the_work(eight: Ranks) -> None:
    """With two branches, each rank of a split mesh computes one; of an unsplit mesh, both.

    What the split costs is one exchange of the outputs, the size of a latent.
    """
    case = Case(16, 16, (16, 24))
    whole = eight.run(on_rank.shares, ULYSSES_8, case)
    split = eight.run(on_rank.shares, CFG_2_ULYSSES_4, case)
    assert all(len(seen["queries"]) == 2 * BLOCKS for seen in whole)
    assert all(len(seen["queries"]) == BLOCKS for seen in split)
    assert [seen["queries"][0][2] for seen in split] == [80] * 4 + [88] * 4
    latent = 16 * 16 * 16 * FP32
    gathered = 3 * 64 // 4 * CHANNELS * FP32
    assert all(seen["bytes"]["all_gather"] == gathered + latent for seen in split)
