"""Nodes that keep a group from forming are left out for a while."""

from __future__ import annotations

import pytest

from coordinator.lifecycle.group import GroupPhase
from coordinator.lifecycle.group_events import (
    Failed,
    NodeDown,
)
from tests.coordinator.lifecycle.group_world import NODES, World, fail, ready


def test_a_node_that_always_fails_to_join_is_left_out() -> None:
    """After three times the others form without it. It is tried again later, ever more rarely."""
    world = World(strikes=3, bench_s=30.0, bench_max_s=100.0)
    world.up(*NODES)
    for _ in range(2):
        fail(world, "b")
        assert world.machine.members == NODES
    fail(world, "b")
    assert world.machine.members == ("a", "c")
    pauses = []
    for _ in range(4):
        world.formed()
        (until,) = world.machine.left_out(world.now).values()
        pauses.append(until - world.now)
        world.pass_time(until - world.now)
        assert world.machine.members == NODES
        fail(world, "b")
        assert world.machine.members == ("a", "c")
    assert pauses == pytest.approx([30.0, 60.0, 100.0, 100.0])


def test_a_node_that_joins_again_is_forgiven() -> None:
    """Its failures before do not count any more."""
    world = World()
    world.up(*NODES)
    fail(world, "b")
    fail(world, "b")
    world.formed()
    assert not world.left_out()
    world.send(Failed(world.machine.epoch))
    world.pass_time(31.0)
    fail(world, "b")
    assert world.machine.members == NODES


def test_a_node_that_dies_of_joining_is_left_out() -> None:
    """However often its process is started again."""
    world = World()
    world.up(*NODES)
    for _ in range(3):
        world.send(NodeDown("d"))
        world.up("d")
        world.pass_time(0.3)
    assert world.machine.members == ("a", "b")
    assert world.left_out() == {"d"}


def test_who_is_new_is_blamed_first() -> None:
    """When nobody knows why, it was not those who have been in a group together."""
    world = ready("a", "b")
    world.up("c", "d")
    for _ in range(3):
        fail(world)
    assert world.left_out() == {"c", "d"}
    assert world.machine.members == ("a", "b")


@pytest.mark.parametrize("guilty", NODES)
def test_when_all_are_new_each_is_left_out_in_turn(guilty: str) -> None:
    """Until a group forms without the one with which none does."""
    world = World()
    world.up(*NODES)
    for _ in range(2 * len(NODES)):
        if guilty in world.machine.members:
            fail(world)
    assert world.machine.phase is GroupPhase.FORMING
    assert guilty not in world.machine.members
    assert len(world.machine.members) == 2


def test_nobody_is_left_out_where_all_are_needed() -> None:
    """A group that the others cannot form alone is tried with everyone."""
    world = World()
    world.up("a", "b")
    world.pass_time(11.0)
    for _ in range(6):
        fail(world, "b")
        assert world.machine.members == ("a", "b")
    assert not world.left_out()
