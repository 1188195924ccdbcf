"""The life of the group, under any sequence of events and any passing of time."""

from __future__ import annotations

import itertools
from copy import deepcopy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.lifecycle.group import (
    Abort,
    BusyChanged,
    Event,
    Failed,
    Form,
    Formed,
    GroupMachine,
    GroupPhase,
    GroupPolicy,
    Instruction,
    NodeDown,
    NodeDraining,
    NodeUp,
    Tick,
    WakeAt,
)

NODES = ("a", "b", "c", "d")
SIZES = {0: 0, 1: 0, 2: 2, 3: 2, 4: 4}
"""Of three nodes a group can use two: a spare that must not be joined."""


def policy(**options: float) -> GroupPolicy:
    return GroupPolicy(len(NODES), SIZES.__getitem__, **options)


class World:
    """A machine, its clock, and what it asked for."""

    def __init__(self, **options: float) -> None:
        self.machine = GroupMachine(policy(**options))
        self.now = 0.0
        self.wake: float | None = None
        self.forms: list[tuple[float, Form]] = []
        self.aborts: list[Abort] = []

    def send(self, event: Event) -> list[Instruction]:
        """Give the machine an event now."""
        out = self.machine.handle(event, self.now)
        for instruction in out:
            match instruction:
                case Form():
                    self.forms.append((self.now, instruction))
                case Abort():
                    self.aborts.append(instruction)
                case WakeAt(time):
                    self.wake = time
        return out

    def left_out(self) -> set[str]:
        """Nodes that are not to be in a group now."""
        return set(self.machine.left_out(self.now))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with the ticks that were asked for."""
        end = self.now + seconds
        while self.wake is not None and self.wake <= end:
            self.now, self.wake = max(self.now, self.wake), None
            self.send(Tick())
        self.now = end

    def up(self, *nodes: str) -> None:
        """These nodes report."""
        for node in nodes:
            self.send(NodeUp(node))

    def formed(self) -> None:
        """Every member joined."""
        self.send(Formed(self.machine.epoch))


def ready(*nodes: str) -> World:
    world = World()
    world.up(*nodes)
    world.pass_time(60.0)
    world.formed()
    assert world.machine.phase is GroupPhase.READY
    return world


class GroupStateMachine(RuleBasedStateMachine):
    """Every event at any time; the invariants are what everybody else relies on."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.healthy: set[str] = set()
        self.epochs: list[int] = []
        self.remembered = 0

    def send(self, event: Event) -> None:
        """An event, and what must hold across it."""
        before = self.world.machine
        was = (before.phase, before.epoch, before.members)
        busy, seen = self.busy, len(self.world.forms)
        out = self.world.send(event)
        for _, form in self.world.forms[seen:]:
            assert form.epoch > max([self.remembered, *self.epochs])
            self.epochs.append(form.epoch)
            assert set(form.members) <= self.healthy
            fit = self.healthy - self.world.left_out()
            assert set(form.members) <= fit
            assert len(form.members) == SIZES[len(fit)] > 0
            assert list(form.members) == sorted(form.members)
            # The one before is given up first.
            assert was[0] is GroupPhase.NONE or any(isinstance(i, Abort) for i in out)
        assert sum(isinstance(i, Form) for i in out) <= 1
        if was[0] is GroupPhase.READY and busy and not isinstance(event, (NodeDown, Failed)):
            now = self.world.machine
            assert (now.phase, now.epoch, now.members) == was

    busy = False

    @rule(node=st.sampled_from(NODES), epoch=st.integers(0, 20))
    def node_comes(self, node: str, epoch: int) -> None:
        """A node reports, perhaps with a newer epoch than ours."""
        self.healthy.add(node)
        self.remembered = max(self.remembered, epoch)
        self.send(NodeUp(node, epoch))

    @rule(node=st.sampled_from(NODES))
    def node_goes(self, node: str) -> None:
        """A node dies, joined or not."""
        self.healthy.discard(node)
        self.send(NodeDown(node))

    @rule()
    def forming_succeeds(self) -> None:
        """Every member joined."""
        self.send(Formed(self.world.machine.epoch))

    @rule(stale=st.booleans(), blamed=st.integers(0, 4))
    def group_fails(self, stale: bool, blamed: int) -> None:
        """Forming or work failed, by some members' fault or nobody's; news of an old group changes
        nothing.
        """
        machine = self.world.machine
        before = (machine.phase, machine.epoch, machine.members)
        self.send(Failed(machine.epoch - stale, machine.members[:blamed]))
        if stale and before[0] is not GroupPhase.NONE:
            assert (machine.phase, machine.epoch, machine.members) == before

    @precondition(lambda self: self.world.machine.phase is GroupPhase.READY)
    @rule()
    def job_begins(self) -> None:
        """Work is given to a ready group only."""
        self.send(BusyChanged(True))
        self.busy = True

    @rule()
    def job_ends(self) -> None:
        """The group may grow from now on."""
        self.busy = False
        self.send(BusyChanged(False))

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.6, 5.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        """With the ticks that the machine asked for."""
        seen = len(self.world.forms)
        self.world.pass_time(seconds)
        self.epochs += [form.epoch for _, form in self.world.forms[seen:]]

    @invariant()
    def members_are_healthy(self) -> None:
        """And there are as many as some number of nodes can use; without a group there are none."""
        machine = self.world.machine
        assert set(machine.members) <= self.healthy
        assert bool(machine.members) == (machine.phase is not GroupPhase.NONE)

    @invariant()
    def epochs_grow(self) -> None:
        """Each epoch is used once."""
        assert self.epochs == sorted(set(self.epochs))

    @invariant()
    def a_wait_has_an_end(self) -> None:
        """With nodes enough and no group, a tick is always on its way."""
        machine = self.world.machine
        if machine.phase is GroupPhase.NONE and SIZES[len(self.healthy)]:
            assert self.world.wake is not None
            assert self.world.wake <= self.world.now + 30.0

    @invariant()
    def it_gets_ready_if_nothing_more_goes_wrong(self) -> None:
        """Liveness, tried on a copy: time and successful joins lead to the largest group."""
        if not SIZES[len(self.healthy)]:
            return
        copy = World()
        copy.machine = deepcopy(self.world.machine)
        copy.now, copy.wake = self.world.now, self.world.wake
        for _ in range(3):
            copy.pass_time(601.0)
            copy.formed()
            copy.send(BusyChanged(False))
        assert copy.machine.phase is GroupPhase.READY
        assert len(copy.machine.members) == SIZES[len(self.healthy)]


TestGroupStateMachine = GroupStateMachine.TestCase
TestGroupStateMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


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


def fail(world: World, *culprits: str) -> None:
    """Forming fails now, by these nodes' fault; then the time comes to try again."""
    assert world.machine.phase is GroupPhase.FORMING
    world.send(Failed(world.machine.epoch, culprits))
    while world.machine.phase is GroupPhase.NONE:
        assert world.wake is not None
        world.pass_time(world.wake - world.now)


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
