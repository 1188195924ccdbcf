"""From healthy nodes to meshes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.cluster.meshes import MAIN, SPLIT, MeshPlan
from coordinator.lifecycle.patience import Patience
from ditmesh.errors import InvalidMesh

HEADS = st.sampled_from([1, 2, 3, 8, 12, 24])


@given(
    expected=st.integers(1, 10),
    healthy=st.integers(0, 12),
    heads=HEADS,
    split=st.booleans(),
    min_ranks=st.integers(1, 4),
)
def test_any_number_of_nodes_gives_valid_meshes_or_none(
    expected: int, healthy: int, heads: int, split: bool, min_ranks: int
) -> None:
    """Every mesh fits ranks and heads; all have the size that the group gets; never too few."""
    plan = MeshPlan(expected, cfg_split=split, min_ranks=min(min_ranks, expected))
    meshes = plan.meshes(healthy, heads)
    if healthy < plan.min_ranks:
        assert meshes == ()
    for mesh in meshes:
        mesh.validate(world_size=min(healthy, expected), num_heads=heads)
        assert plan.min_ranks <= mesh.size <= min(healthy, expected)
        assert mesh.size == meshes[MAIN].size
    if len(meshes) > SPLIT:
        assert split
        assert meshes[SPLIT].cfg == 2
    # A group of that size alone gets the very same meshes: that is how it is formed.
    if meshes:
        assert plan.meshes(meshes[MAIN].size, heads) == meshes


@pytest.mark.parametrize(
    ("healthy", "expected"), [(8, "ulysses=8"), (7, "ring=7"), (4, "ulysses=4"), (1, "single")]
)
def test_auto_takes_the_largest_mesh(healthy: int, expected: str) -> None:
    """Ulysses as far as the heads divide, ring for the rest."""
    (mesh,) = MeshPlan(8).meshes(healthy, 24)
    assert str(mesh).startswith(f"{expected} on")
    assert mesh.size == healthy


@pytest.mark.parametrize("healthy", [8, 7, 4])
def test_configured_degrees_hold_while_there_are_nodes_for_them(healthy: int) -> None:
    """Four of eight cards may be faster than eight: then the other four are spares."""
    (mesh,) = MeshPlan(8, "ulysses=2,ring=2").meshes(healthy, 24)
    assert (mesh.ulysses, mesh.ring, mesh.size) == (2, 2, 4)


def test_configured_degrees_give_way_when_there_are_too_few_nodes() -> None:
    """A smaller group is better than none."""
    (mesh,) = MeshPlan(8, "ulysses=8").meshes(3, 24)
    assert (mesh.ulysses, mesh.size) == (3, 3)


def test_degrees_that_the_heads_cannot_take_are_an_error_in_words() -> None:
    """No other mesh is silently put in their place."""
    with pytest.raises(InvalidMesh, match="does not divide the model's 6 heads"):
        MeshPlan(8, "ulysses=8").meshes(8, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((8, "ulysses=16"), "needs 16 ranks"),
        ((8, "ulisses=8"), "ulisses=8"),
        ((8, "auto", False, 9), "min_ranks=9"),
        ((8, "auto", False, 0), "min_ranks=0"),
    ],
)
def test_an_impossible_configuration_stops_the_start(
    arguments: tuple[int, str], words: str
) -> None:
    """Before any node is asked."""
    with pytest.raises(InvalidMesh, match=words):
        MeshPlan(*arguments)


def test_without_nodes_or_models_there_is_no_mesh() -> None:
    """A coordinator may have its local sampler only."""
    assert MeshPlan(0).meshes(0, 24) == ()
    assert MeshPlan(8).meshes(8, 0) == ()


@given(st.lists(st.floats(0.0, 100.0), max_size=20))
def test_patience_is_never_shorter_than_what_steps_have_shown(seconds: list[float]) -> None:
    """The first step may compile; a later one has ten times the slowest so far, and a floor."""
    patience = Patience(first_s=300.0, floor_s=10.0, factor=10.0)
    for i, step in enumerate(seconds):
        limit = patience.limit_s()
        assert limit >= 10.0
        if i < 2:
            assert limit == 300.0
        else:
            assert limit == max(10.0, 10.0 * max(seconds[1:i]))
        patience.note(step)
