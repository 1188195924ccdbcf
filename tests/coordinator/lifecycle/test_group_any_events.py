"""The life of the group, under any sequence of events and any passing of time."""

from __future__ import annotations

from copy import deepcopy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.lifecycle.group import GroupPhase
from coordinator.lifecycle.group_events import (
    Abort,
    BusyChanged,
    Event,
    Failed,
    Form,
    Formed,
    NodeDown,
    NodeLoaded,
    NodeLoading,
    NodeUp,
)
from tests.coordinator.lifecycle.group_world import NODES, SIZES, World


class GroupStateMachine(RuleBasedStateMachine):
    """Every event at any time; the invariants are what everybody else relies on."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.healthy: set[str] = set()
        self.epochs: list[int] = []
        self.loading: set[str] = set()
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
            fit = self.healthy - self.world.left_out() - self.loading
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
        self.loading.discard(node)
        self.send(NodeDown(node))

    @rule(node=st.sampled_from(NODES))
    def node_loads(self, node: str) -> None:
        """Alone, or with all others for a job; nobody is blamed for it."""
        self.loading.add(node)
        strikes = dict(self.world.machine._strikes)
        self.send(NodeLoading(node))
        assert self.world.machine._strikes == strikes

    @rule(node=st.sampled_from(NODES))
    def node_has_loaded(self, node: str) -> None:
        """Or did not load at all."""
        self.loading.discard(node)
        self.send(NodeLoaded(node))

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
    def who_loads_is_not_waited_for(self) -> None:
        """No group is being formed with it; one that has it works on."""
        if self.world.machine.phase is GroupPhase.FORMING:
            assert not self.loading & set(self.world.machine.members)

    @invariant()
    def epochs_grow(self) -> None:
        """Each epoch is used once."""
        assert self.epochs == sorted(set(self.epochs))

    @invariant()
    def a_wait_has_an_end(self) -> None:
        """With nodes enough and no group, a tick is always on its way."""
        machine = self.world.machine
        if machine.phase is GroupPhase.NONE and SIZES[len(self.healthy - self.loading)]:
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
        if SIZES[len(self.healthy - self.loading)]:
            # Without those that load, however long they do.
            _let_it_form(copy)
        for node in self.loading:
            copy.send(NodeLoaded(node))
        _let_it_form(copy)
        assert len(copy.machine.members) == SIZES[len(self.healthy)]


def _let_it_form(world: World) -> None:
    for _ in range(3):
        world.pass_time(601.0)
        world.formed()
        world.send(BusyChanged(False))
    assert world.machine.phase is GroupPhase.READY


TestGroupStateMachine = GroupStateMachine.TestCase
TestGroupStateMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
