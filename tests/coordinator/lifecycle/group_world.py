"""The group's machine with a clock of its own, for tests."""

from __future__ import annotations

from coordinator.lifecycle.group import GroupMachine, GroupPhase, GroupPolicy
from coordinator.lifecycle.group_events import (
    Abort,
    Event,
    Failed,
    Form,
    Formed,
    Instruction,
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


def fail(world: World, *culprits: str) -> None:
    """Forming fails now, by these nodes' fault; then the time comes to try again."""
    assert world.machine.phase is GroupPhase.FORMING
    world.send(Failed(world.machine.epoch, culprits))
    while world.machine.phase is GroupPhase.NONE:
        assert world.wake is not None
        world.pass_time(world.wake - world.now)
