"""What happens to a group, and what its life asks for in turn."""

from __future__ import annotations

from dataclasses import dataclass


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
class NodeLoading:
    """A node loads weights: it joins when it is through, and works on in the group it is in."""

    node: str


@dataclass(frozen=True)
class NodeLoaded:
    """A node is through with loading."""

    node: str


@dataclass(frozen=True)
class Formed:
    """Every member joined."""

    epoch: int


@dataclass(frozen=True)
class Failed:
    """Forming failed, or the group failed at its work although its nodes still answer.

    `culprits` are the members that are known to have kept it from forming.
    """

    epoch: int
    culprits: tuple[str, ...] = ()


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


Event = (
    NodeUp
    | NodeDown
    | NodeDraining
    | NodeLoading
    | NodeLoaded
    | Formed
    | Failed
    | BusyChanged
    | Tick
)
Instruction = Form | Abort | WakeAt
