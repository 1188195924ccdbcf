"""The life of a node as its coordinator sees it.

    DOWN ──report──> IDLE <──left── JOINED
                      └────joined────^        draining: DRAINING
                                              lost, or another incarnation: DOWN

An incarnation is one process: a node that restarts under the same address is another one. Beside
its phase, whether it loads weights: it joins nothing until it is through.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class NodePhase(enum.Enum):
    """Where a node is."""

    DOWN = "down"
    IDLE = "idle"
    JOINED = "joined"
    DRAINING = "draining"


@dataclass(frozen=True)
class Report:
    """The node said what it is. `epoch` is the group it is in, 0 for none; `loading`: weights."""

    incarnation: str
    epoch: int
    draining: bool = False
    loading: bool = False


@dataclass(frozen=True)
class RefusedLoading:
    """The node joins nothing yet, because it loads weights; its next report may not say so."""


@dataclass(frozen=True)
class Lost:
    """The node's stream broke."""

    why: str


class Change(enum.Enum):
    """What the group must learn of it."""

    UP = "it can join a group"
    DRAINING = "it finishes what it has and joins nothing more"
    DOWN = "it is gone, and with it its place in any group"
    LOADING = "it loads weights, and joins nothing until it is through"
    LOADED = "it is through with loading"


@dataclass(frozen=True)
class NodeView:
    """What is known of a node."""

    phase: NodePhase = NodePhase.DOWN
    incarnation: str = ""
    epoch: int = 0
    problem: str = "not reached yet"
    loading: bool = False


def advance(
    view: NodeView, event: Report | RefusedLoading | Lost
) -> tuple[NodeView, tuple[Change, ...]]:
    """The new view, and the changes in the order in which they happened."""
    if isinstance(event, RefusedLoading):
        if view.phase is NodePhase.DOWN or view.loading:
            return view, ()
        return replace(view, loading=True), (Change.LOADING,)
    if isinstance(event, Lost):
        was_down = view.phase is NodePhase.DOWN
        return NodeView(problem=event.why), () if was_down else (Change.DOWN,)
    was_up = view.phase is not NodePhase.DOWN
    another = was_up and event.incarnation != view.incarnation
    changes: tuple[Change, ...] = (Change.DOWN,) if another else ()
    if event.loading != (view.loading and not another):
        # Before it is said that it can join.
        changes += (Change.LOADING if event.loading else Change.LOADED,)
    if event.draining:
        phase, problem = NodePhase.DRAINING, "shutting down"
        known = view.phase is NodePhase.DRAINING
    else:
        phase, problem = (NodePhase.JOINED if event.epoch else NodePhase.IDLE), ""
        known = view.phase in (NodePhase.IDLE, NodePhase.JOINED)
    if another or not known:
        changes += (Change.DRAINING if event.draining else Change.UP,)
    return NodeView(phase, event.incarnation, event.epoch, problem, event.loading), changes
