"""The life of the group: which nodes form it, when it is given up, when it forms again.

    NONE ──enough nodes──> FORMING ──formed──> READY
      ^                       │                  │
      └──────failed, or a member is gone─────────┘

Events go in with the time, instructions come out. A group grows only while no job runs, and one
with a member that drains lets its job end first. A node that fails to join again and again is left
out for a while, so that the others have a group. One that loads weights is asked to join when it is
through; where the others could form, they wait for it, but not for long.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.lifecycle.group_events import (
    Abort,
    BusyChanged,
    Event,
    Failed,
    Form,
    Formed,
    Instruction,
    NodeDown,
    NodeDraining,
    NodeLoaded,
    NodeLoading,
    NodeUp,
    WakeAt,
)


class GroupPhase(enum.Enum):
    """Where the group is."""

    NONE = "none"
    FORMING = "forming"
    READY = "ready"


@dataclass(frozen=True)
class GroupPolicy:
    """When to form.

    `size` tells how many of so many healthy nodes a group can use (0: none). `expected` nodes
    form at once; fewer wait `settle_s` for the others to appear, or `regroup_s` after a loss.
    `settle_s` is also how long those that can form wait for others that load weights, and
    `load_s` how long a load may take before the lack of a group is not put down to it any more.
    A failure without a dead node is followed by a pause that doubles from `retry_s` to
    `retry_max_s`. A node that failed to join `strikes` times without being in a group between
    is left out for `bench_s`, and for twice as long after each further failure, up to
    `bench_max_s`.
    """

    expected: int
    size: Callable[[int], int]
    settle_s: float = 10.0
    load_s: float = 1800.0
    regroup_s: float = 0.2
    retry_s: float = 0.5
    retry_max_s: float = 30.0
    strikes: int = 3
    bench_s: float = 30.0
    bench_max_s: float = 600.0


@dataclass
class GroupMachine:
    """The group's state; `handle` is its only way to change."""

    policy: GroupPolicy
    phase: GroupPhase = GroupPhase.NONE
    epoch: int = 0
    members: tuple[str, ...] = ()
    _healthy: set[str] = field(default_factory=set)
    _proven: set[str] = field(default_factory=set)
    """Nodes that have been in a group since they came."""
    _strikes: dict[str, int] = field(default_factory=dict)
    _benched: dict[str, float] = field(default_factory=dict)
    _loading: dict[str, float] = field(default_factory=dict)
    """Nodes that load weights, and since when."""
    _wait_for_loads: float | None = None
    """Until when nodes that could form wait for those that load."""
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

    def could_grow(self, now: float) -> bool:
        """Whether it could use more nodes that are there, and takes them in once it is idle."""
        size = self.policy.size(len(self._fit(now)))
        return self.phase is GroupPhase.READY and size > len(self.members)

    @property
    def loading(self) -> dict[str, float]:
        """Nodes that are in no group while they load weights, and since when."""
        members = self.members if self.phase is GroupPhase.READY else ()
        return {
            node: since
            for node, since in self._loading.items()
            if node in self._healthy and node not in members
        }

    def awaits_loads(self, now: float) -> bool:
        """Whether there is no group only because nodes load weights, and not for too long yet."""
        if self.phase is not GroupPhase.NONE:
            return False
        fit = self._fit(now)
        if self.policy.size(len(fit)):
            return self._wait_for_loads is not None and now < self._wait_for_loads
        load_s = self.policy.load_s
        soon = {node for node, since in self.loading.items() if now - since < load_s}
        return bool(self.policy.size(len(fit | soon)))

    def left_out(self, now: float) -> dict[str, float]:
        """Nodes that fail to join, and until when they are left out."""
        benched = {n: end for n, end in self._benched.items() if end > now and n in self._healthy}
        if not benched:
            return {}
        rest = len(self._healthy - self._loading.keys() - benched.keys())
        # Where the others are too few for a group, nothing is won without them.
        return benched if self.policy.size(rest) else {}

    def _fit(self, now: float) -> set[str]:
        """Nodes that a new group could have."""
        return self._healthy - self._loading.keys() - self.left_out(now).keys()

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
                self._proven.discard(node)
                self._loading.pop(node, None)
                if node in self.members:
                    if self.phase is GroupPhase.FORMING:
                        # Of joining, for all we know.
                        self._blame((node,), now)
                    out += self._give_up()
                    self._settle(now, self.policy.regroup_s, restart=True)
            case NodeDraining(node):
                self._healthy.discard(node)
                self._closing = self._closing or node in self.members
            case NodeLoading(node):
                self._loading.setdefault(node, now)
                if self.phase is GroupPhase.FORMING and node in self.members:
                    # It does not come, and nobody is to blame.
                    out += self._give_up()
            case NodeLoaded(node):
                self._loading.pop(node, None)
            case Formed(epoch) if epoch == self.epoch and self.phase is GroupPhase.FORMING:
                self.phase = GroupPhase.READY
                self._proven.update(self.members)
                for node in self.members:
                    self._strikes.pop(node, None)
                    self._benched.pop(node, None)
            case Failed(epoch, culprits) if (
                epoch == self.epoch and self.phase is not GroupPhase.NONE
            ):
                found = self.phase is GroupPhase.FORMING and self._blame(
                    culprits or self._newcomers(), now
                )
                if not found:
                    # The others need not wait when somebody is left out from now on.
                    self._back_off(now)
                out += self._give_up()
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

    def _newcomers(self) -> tuple[str, ...]:
        """Members that have never been in a group, if others have: the likely culprits."""
        new = tuple(member for member in self.members if member not in self._proven)
        return new if len(new) < len(self.members) else ()

    def _blame(self, nodes: tuple[str, ...], now: float) -> bool:
        """Hold a failure to join against nodes; whether some are left out for it."""
        for node in nodes:
            strikes = self._strikes[node] = self._strikes.get(node, 0) + 1
            if strikes >= self.policy.strikes:
                self._bench(node, now, strikes - self.policy.strikes)
        if not nodes and self._failures >= self.policy.strikes:
            # Nobody knows why, and it goes on: each in turn.
            suspect = min(self.members, key=lambda n: self._benched.get(n, 0.0))
            for node, end in self._benched.items():
                if self._strikes.get(node, 0) < self.policy.strikes:
                    self._benched[node] = min(end, now)
            self._bench(suspect, now, 0)
            return False
        return bool(self.left_out(now).keys() & set(nodes))

    def _bench(self, node: str, now: float, times: int) -> None:
        pause = min(self.policy.bench_s * 2**times, self.policy.bench_max_s)
        self._benched[node] = now + pause

    def _give_up(self) -> list[Instruction]:
        survivors = tuple(m for m in self.members if m in self._healthy)
        epoch = self.epoch
        self.phase, self.members, self._closing = GroupPhase.NONE, (), False
        return [Abort(epoch, survivors)] if survivors else []

    def _consider(self, now: float) -> list[Instruction]:
        """Form, grow or wait, by what is healthy now."""
        wake = list(self.left_out(now).values())
        may_grow = self.phase is GroupPhase.READY and not self._busy
        if not may_grow and self.phase is not GroupPhase.NONE:
            # What a group could have been is a question that every job would ask twice.
            self._wait_for_loads = None
            return [WakeAt(min(wake))] if wake else []
        fit = sorted(self._fit(now))
        size = self.policy.size(len(fit))
        self._wait(now, size, len(fit))
        if may_grow and size > len(self.members):
            return [*self._give_up(), *self._form(fit[:size])]
        if self.phase is GroupPhase.NONE and size:
            ready_at = self._not_before
            if len(self._healthy) < self.policy.expected:
                ready_at = max(ready_at, self._settled_at or 0.0)
            ready_at = max(ready_at, self._wait_for_loads or 0.0)
            if now >= ready_at:
                return self._form(fit[:size])
            wake.append(ready_at)
        return [WakeAt(min(wake))] if wake else []

    def _wait(self, now: float, size: int, fit: int) -> None:
        """Where `size` of so many fit nodes could form: for those that load, if they are of use."""
        waits = self.phase is GroupPhase.NONE and size and self.loading
        if not waits or self.policy.size(fit + len(self.loading)) <= size:
            self._wait_for_loads = None
        elif self._wait_for_loads is None:
            self._wait_for_loads = now + self.policy.settle_s

    def _form(self, members: list[str]) -> list[Instruction]:
        self._newest_epoch += 1
        self.epoch = self._newest_epoch
        self.members = tuple(members)
        self.phase = GroupPhase.FORMING
        self._settled_at = self._wait_for_loads = None
        return [Form(self.epoch, self.members)]
