"""The life of a node as its coordinator sees it.

    DOWN ──report──> IDLE <──left── JOINED
                      └────joined────^        draining: DRAINING
                                              lost, or another incarnation: DOWN

An incarnation is one process: a node that restarts under the same address is another one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class NodePhase(enum.Enum):
    """Where a node is."""

    DOWN = "down"
    IDLE = "idle"
    JOINED = "joined"
    DRAINING = "draining"


@dataclass(frozen=True)
class Report:
    """The node said what it is. `epoch` is the group it is in, 0 for none."""

    incarnation: str
    epoch: int
    draining: bool = False


@dataclass(frozen=True)
class Lost:
    """The node's stream broke."""

    why: str


class Change(enum.Enum):
    """What the group must learn of it."""

    UP = "it can join a group"
    DRAINING = "it finishes what it has and joins nothing more"
    DOWN = "it is gone, and with it its place in any group"


@dataclass(frozen=True)
class NodeView:
    """What is known of a node."""

    phase: NodePhase = NodePhase.DOWN
    incarnation: str = ""
    epoch: int = 0
    problem: str = "not reached yet"


def advance(view: NodeView, event: Report | Lost) -> tuple[NodeView, tuple[Change, ...]]:
    """The new view, and the changes in the order in which they happened."""
    if isinstance(event, Lost):
        changes = () if view.phase is NodePhase.DOWN else (Change.DOWN,)
        return NodeView(problem=event.why), changes
    was_up = view.phase is not NodePhase.DOWN
    another = was_up and event.incarnation != view.incarnation
    gone = (Change.DOWN,) if another else ()
    if event.draining:
        new = NodeView(NodePhase.DRAINING, event.incarnation, event.epoch, "shutting down")
        told = view.phase is NodePhase.DRAINING and not another
        return new, gone if told else (*gone, Change.DRAINING)
    phase = NodePhase.JOINED if event.epoch else NodePhase.IDLE
    new = NodeView(phase, event.incarnation, event.epoch, problem="")
    usable = view.phase in (NodePhase.IDLE, NodePhase.JOINED) and not another
    return new, gone if usable else (*gone, Change.UP)
