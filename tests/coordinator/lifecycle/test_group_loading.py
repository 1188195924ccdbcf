"""Nodes that load weights while there is no group: who waits for whom, and how long."""

from __future__ import annotations

import pytest

from coordinator.lifecycle.group import GroupPhase
from coordinator.lifecycle.group_events import (
    BusyChanged,
    NodeDown,
    NodeDraining,
    NodeLoaded,
    NodeLoading,
)
from tests.coordinator.lifecycle.group_world import NODES, World, fail, ready


def lost_while_loading(*loading: str) -> World:
    """A group of all, at a job for which these load, loses a member that is back at once."""
    world = ready(*NODES)
    world.send(BusyChanged(True))
    for node in loading:
        world.send(NodeLoading(node))
    assert world.machine.phase is GroupPhase.READY, "members load for their work"
    world.send(NodeDown("d"))
    world.send(BusyChanged(False))
    return world


def test_survivors_that_load_are_not_asked_until_they_are_through() -> None:
    """However long that takes; a lack of a group is put down to it for half an hour."""
    world = lost_while_loading("a", "b", "c")
    world.pass_time(1700.0)
    assert len(world.forms) == 1
    assert set(world.machine.loading) == {"a", "b", "c"}
    assert world.machine.awaits_loads(world.now)
    world.pass_time(200.0)
    assert not world.machine.awaits_loads(world.now)
    for node in ("a", "c"):
        world.send(NodeLoaded(node))
    assert world.machine.members == ("a", "c")
    assert not world.left_out()


def test_who_is_through_waits_for_the_others_but_not_for_long() -> None:
    """Those that load the same weights are through at about the same time, and work that begins
    without them keeps them out until it ends. Who takes much longer is taken in later.
    """
    for through_in_time in (True, False):
        world = lost_while_loading("a", "b")
        world.up("d")
        world.pass_time(9.0)
        assert len(world.forms) == 1
        assert world.machine.awaits_loads(world.now)
        if through_in_time:
            world.send(NodeLoaded("a"))
            world.send(NodeLoaded("b"))
            assert world.machine.members == NODES
            continue
        world.pass_time(1.0)
        assert world.machine.members == ("c", "d")
        assert not world.machine.awaits_loads(world.now)
        world.formed()
        world.send(NodeLoaded("a"))
        assert world.machine.members == ("c", "d")
        world.send(NodeLoaded("b"))
        assert world.machine.members == NODES


def test_nobody_waits_for_who_would_be_of_no_use() -> None:
    """Of three nodes a group can use two."""
    world = lost_while_loading("b")
    world.pass_time(0.2)
    assert world.machine.members == ("a", "c")


@pytest.mark.parametrize("times", [1, 5])
def test_a_node_that_begins_to_load_while_it_is_to_join_is_not_blamed(times: int) -> None:
    """Nor is anybody else: it is asked again when it is through."""
    world = World()
    world.up(*NODES)
    for _ in range(times):
        assert world.machine.phase is GroupPhase.FORMING
        world.send(NodeLoading("b"))
        assert world.machine.phase is GroupPhase.NONE
        assert world.aborts[-1].members == NODES
        world.send(NodeLoaded("b"))
        assert world.machine.members == NODES
    fail(world, "b")
    assert not world.left_out()


def test_who_is_left_out_is_tried_again_where_all_others_load() -> None:
    """Nothing is won without it then."""
    world = World()
    world.up("a", "b", "c")
    world.pass_time(10.0)
    for _ in range(3):
        fail(world, "b")
    assert world.machine.members == ("a", "c")
    world.send(NodeLoading("a"))
    world.pass_time(0.0)
    assert world.machine.members == ("b", "c")


def test_a_group_does_not_grow_by_who_loads() -> None:
    """It would be given up for nothing."""
    world = ready("a", "b")
    world.send(NodeLoading("c"))
    world.up("c", "d")
    assert world.machine.members == ("a", "b")
    assert not world.machine.could_grow(world.now)
    world.send(NodeLoaded("c"))
    assert world.machine.members == NODES


def test_who_shuts_down_is_waited_for_by_nobody() -> None:
    """Whatever it loads."""
    world = lost_while_loading("a")
    world.send(NodeDraining("a"))
    world.pass_time(0.2)
    assert world.machine.members == ("b", "c")
    assert not world.machine.loading
