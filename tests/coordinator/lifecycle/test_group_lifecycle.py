"""The life of the group: when it forms, shrinks, grows and is given up."""

from __future__ import annotations

import itertools

import pytest

from coordinator.lifecycle.group import GroupPhase
from coordinator.lifecycle.group_events import (
    Abort,
    BusyChanged,
    Failed,
    Form,
    Formed,
    NodeDown,
    NodeDraining,
    NodeUp,
)
from tests.coordinator.lifecycle.group_world import NODES, World, ready


def test_all_expected_nodes_form_at_once() -> None:
    """Nobody is waited for once all are there."""
    world = World()
    world.up("d", "b", "a")
    assert not world.forms
    world.up("c")
    assert world.forms == [(0.0, Form(1, NODES))]


def test_fewer_nodes_wait_for_the_others_to_appear_then_form() -> None:
    """The settling time is counted from the first node."""
    world = World(settle_s=10.0)
    world.up("a")
    world.pass_time(4.0)
    world.up("b")
    world.pass_time(5.9)
    assert not world.forms
    world.pass_time(0.2)
    assert world.forms == [(10.0, Form(1, ("a", "b")))]


def test_a_lost_member_leads_to_a_smaller_group_soon() -> None:
    """The survivors are told to leave, and form after a moment in which others may die too."""
    world = ready(*NODES)
    world.send(NodeDown("b"))
    assert world.aborts == [Abort(1, ("a", "c", "d"))]
    assert world.machine.phase is GroupPhase.NONE
    world.pass_time(1.0)
    (_, form) = world.forms[-1]
    assert form == Form(2, ("a", "c"))


def test_a_lost_spare_changes_nothing() -> None:
    """Only members count."""
    world = ready("a", "b", "c")
    assert world.machine.members == ("a", "b")
    world.send(NodeDown("c"))
    assert world.machine.phase is GroupPhase.READY


def test_a_group_grows_when_it_is_idle() -> None:
    """Never under a job; then at once."""
    world = ready("a", "b")
    world.send(BusyChanged(True))
    world.up("c", "d")
    assert world.machine.members == ("a", "b")
    world.send(BusyChanged(False))
    assert world.machine.members == NODES
    assert world.aborts == [Abort(1, ("a", "b"))]


def test_a_group_says_when_it_only_waits_to_be_idle_to_grow() -> None:
    """Nodes that it has no use for, and those that are left out, are none to wait for."""
    world = ready("a", "b")
    world.send(BusyChanged(True))
    assert not world.machine.could_grow(world.now)
    world.up("c")
    assert not world.machine.could_grow(world.now)
    world.up("d")
    assert world.machine.could_grow(world.now)
    world.send(BusyChanged(False))
    assert not world.machine.could_grow(world.now)
    world.formed()
    assert not world.machine.could_grow(world.now)


def test_a_new_process_at_a_members_address_ends_the_group() -> None:
    """Its place in the group is gone with the old process."""
    world = ready(*NODES)
    world.send(NodeDown("a"))
    world.up("a")
    assert world.machine.epoch == 2
    assert world.machine.members == NODES


def test_the_epoch_is_newer_than_any_that_a_node_remembers() -> None:
    """A coordinator that restarts finds nodes in groups of its predecessor."""
    world = World()
    world.send(NodeUp("a", 41))
    world.up("b", "c", "d")
    assert world.machine.epoch == 42


def test_failures_are_spaced_ever_further() -> None:
    """No endless loop at full speed when nothing but forming goes wrong."""
    world = World(retry_s=0.5, retry_max_s=30.0)
    world.up(*NODES)
    for _ in range(12):
        world.send(Failed(world.machine.epoch))
        world.pass_time(31.0)
    times = [at for at, _ in world.forms]
    world = World(retry_s=0.5, retry_max_s=30.0)
    world.up(*NODES)
    gaps = []
    for _ in range(9):
        failed_at = world.now
        world.send(Failed(world.machine.epoch))
        assert world.wake is not None
        gaps.append(world.wake - failed_at)
        world.pass_time(world.wake - world.now)
    assert gaps == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert len(times) == 13


def test_work_that_was_done_makes_the_next_failure_the_first_again() -> None:
    """A group that fails once a day forms again at once each time."""
    world = ready(*NODES)
    for _ in range(5):
        world.send(BusyChanged(True))
        world.send(BusyChanged(False))
        world.send(Failed(world.machine.epoch))
        assert world.wake is not None
        assert world.wake - world.now == pytest.approx(0.5)
        world.pass_time(1.0)
        world.formed()


@pytest.mark.parametrize("phase", GroupPhase)
def test_news_of_another_epoch_is_no_news(phase: GroupPhase) -> None:
    """Answers may arrive after their group is gone."""
    world = World()
    if phase is not GroupPhase.NONE:
        world.up(*NODES)
    if phase is GroupPhase.READY:
        world.formed()
    for event, epoch in itertools.product((Formed, Failed), (0, 7)):
        if phase is GroupPhase.NONE or epoch != world.machine.epoch:
            assert world.send(event(epoch)) == []
    assert world.machine.phase is phase


def test_a_draining_member_keeps_its_group_until_the_job_ends() -> None:
    """A busy group with a member that drains takes nothing new, and forms anew once it is idle."""
    world = World()
    world.up(*NODES)
    world.formed()
    world.send(BusyChanged(True))
    assert world.send(NodeDraining(NODES[0])) == []
    assert world.machine.phase is GroupPhase.READY
    assert not world.machine.accepting
    abort, *_ = world.send(BusyChanged(False))
    assert isinstance(abort, Abort)
    assert NODES[0] not in world.machine.members


def test_a_draining_member_of_an_idle_group_leaves_at_once() -> None:
    """Nobody is disturbed: the group is given up when the news comes."""
    world = World()
    world.up(*NODES)
    world.formed()
    abort, *_ = world.send(NodeDraining(NODES[0]))
    assert isinstance(abort, Abort)
    assert NODES[0] not in abort.members
