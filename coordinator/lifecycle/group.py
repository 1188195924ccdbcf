"""The life of the group: which nodes form it, when it is given up, when it forms again.

    NONE ──enough nodes──> FORMING ──formed──> READY
      ^                       │                  │
      └──────failed, or a member is gone─────────┘

Events go in with the time, instructions come out. A group grows only while no job runs, and one
with a member that drains lets its job end first.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field


class GroupPhase(enum.Enum):
    """Where the group is."""

    NONE = "none"
    FORMING = "forming"
    READY = "ready"


@dataclass(frozen=True)
class NodeUp:
    """A node can join. `epoch` is the newest group it remembers, 0 for none."""

    node: str
    epoch: int = 0


@dataclass(frozen=True)
class NodeDown:
    """A node is gone."""

    node: str


@dataclass(frozen=True)
class NodeDraining:
    """A node finishes what it has and joins nothing more."""

    node: str


@dataclass(frozen=True)
class Formed:
    """Every member joined."""

    epoch: int


@dataclass(frozen=True)
class Failed:
    """Forming failed, or the group failed at its work although its nodes still answer."""

    epoch: int


@dataclass(frozen=True)
class BusyChanged:
    """A job began or ended on the group."""

    busy: bool


@dataclass(frozen=True)
class Tick:
    """The time asked for with WakeAt has come."""


@dataclass(frozen=True)
class Form:
    """Have these nodes join epoch `epoch`, rank by position."""

    epoch: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Abort:
    """Have these nodes leave."""

    epoch: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class WakeAt:
    """Send a Tick at this time (seconds on the caller's clock)."""

    time: float


Event = NodeUp | NodeDown | NodeDraining | Formed | Failed | BusyChanged | Tick
Instruction = Form | Abort | WakeAt


@dataclass(frozen=True)
class GroupPolicy:
    """When to form.

    `size` tells how many of so many healthy nodes a group can use (0: none). `expected` nodes
    form at once; fewer wait `settle_s` for the others to appear, or `regroup_s` after a loss.
    A failure without a dead node is followed by a pause that doubles from `retry_s` to
    `retry_max_s`.
    """

    expected: int
    size: Callable[[int], int]
    settle_s: float = 10.0
    regroup_s: float = 0.2
    retry_s: float = 0.5
    retry_max_s: float = 30.0


@dataclass
class GroupMachine:
    """The group's state; `handle` is its only way to change."""

    policy: GroupPolicy
    phase: GroupPhase = GroupPhase.NONE
    epoch: int = 0
    members: tuple[str, ...] = ()
    _healthy: set[str] = field(default_factory=set)
    _newest_epoch: int = 0
    _not_before: float = 0.0
    _settled_at: float | None = None
    _failures: int = 0
    _busy: bool = False
    _closing: bool = False

    @property
    def accepting(self) -> bool:
        """Whether the group takes new work: it is ready and none of its members is leaving."""
        return self.phase is GroupPhase.READY and not self._closing

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event at time `now`; returns what to do, in order."""
        out: list[Instruction] = []
        match event:
            case NodeUp(node, epoch):
                self._healthy.add(node)
                self._newest_epoch = max(self._newest_epoch, epoch)
                self._settle(now, self.policy.settle_s)
            case NodeDown(node):
                self._healthy.discard(node)
                if node in self.members:
                    out += self._give_up()
                    self._settle(now, self.policy.regroup_s, restart=True)
            case NodeDraining(node):
                self._healthy.discard(node)
                self._closing = self._closing or node in self.members
            case Formed(epoch) if epoch == self.epoch and self.phase is GroupPhase.FORMING:
                self.phase = GroupPhase.READY
            case Failed(epoch) if epoch == self.epoch and self.phase is not GroupPhase.NONE:
                out += self._give_up()
                self._back_off(now)
            case BusyChanged(busy):
                self._busy = busy
                if busy:
                    # It took work: whatever failed before is over.
                    self._failures = 0
        if self._closing and not self._busy:
            out += self._give_up()
            self._settle(now, self.policy.regroup_s, restart=True)
        return out + self._consider(now)

    def _settle(self, now: float, wait_s: float, *, restart: bool = False) -> None:
        if self._settled_at is None or restart:
            self._settled_at = now + wait_s

    def _back_off(self, now: float) -> None:
        pause = min(self.policy.retry_s * 2**self._failures, self.policy.retry_max_s)
        self._failures += 1
        self._not_before = now + pause

    def _give_up(self) -> list[Instruction]:
        survivors = tuple(m for m in self.members if m in self._healthy)
        epoch = self.epoch
        self.phase, self.members, self._closing = GroupPhase.NONE, (), False
        return [Abort(epoch, survivors)] if survivors else []

    def _consider(self, now: float) -> list[Instruction]:
        """Form, grow or wait, by what is healthy now."""
        size = self.policy.size(len(self._healthy))
        if self.phase is GroupPhase.READY:
            if size > len(self.members) and not self._busy:
                return [*self._give_up(), *self._form(size)]
            return []
        if self.phase is GroupPhase.FORMING or not size:
            return []
        ready_at = self._not_before
        if len(self._healthy) < self.policy.expected:
            ready_at = max(ready_at, self._settled_at or 0.0)
        if now < ready_at:
            return [WakeAt(ready_at)]
        return self._form(size)

    def _form(self, size: int) -> list[Instruction]:
        self._newest_epoch += 1
        self.epoch = self._newest_epoch
        self.members = tuple(sorted(self._healthy))[:size]
        self.phase = GroupPhase.FORMING
        self._settled_at = None
        return [Form(self.epoch, self.members)]
