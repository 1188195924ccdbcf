"""The members of an executor at one piece of work: until all have done it, or it is clear that
they will not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from coordinator.nodes import awake
from coordinator.nodes.link import NodeLink

# Long enough for the leader to send what it has finished, and for the member that died to show
# which of several errors is the cause.
_AFTERMATH_S = 0.5

T = TypeVar("T")


@dataclass
class Joint(Generic[T]):
    """What came of it. Ranks count in the members."""

    results: list[T] = field(default_factory=list)
    """Of every member, or of the first alone where that is enough; empty when it failed."""
    failures: list[tuple[int, BaseException]] = field(default_factory=list)
    """Errors by rank."""
    problems: dict[int, str] = field(default_factory=dict)
    """What is wrong with the members that did not fail but kept the work from being done."""
    late: list[int] = field(default_factory=list)
    """Those of them that took too long."""


async def together(
    steps: Sequence[Coroutine[Any, Any, T]],
    members: Sequence[NodeLink],
    *,
    led: bool = False,
    limit_s: float | None = None,
) -> Joint[T]:
    """Do one step on each member.

    Ends early, with a moment for the others to end as well, once a step fails, a member is found
    lost, or `limit_s` seconds are over (time in which this process stood still hardly counts). When
    the work is `led`, the first member's result is enough, and whatever becomes of the others is
    found out by the next work.
    """
    joint = Joint[T]()
    tasks = [asyncio.create_task(step) for step in steps]
    losses = [asyncio.create_task(link.lost()) for link in members]
    try:
        joint.late = await _until_decided(tasks, losses, led, limit_s)
        for rank, loss in enumerate(losses):
            if loss.done():
                joint.problems[rank] = f"is gone ({members[rank].view.problem})"
        for rank in joint.late:
            joint.problems[rank] = f"has not answered for {limit_s:g} s"
        if not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=_AFTERMATH_S)
    finally:
        for task in (*tasks, *losses):
            task.cancel()
    if led and tasks[0].done() and not failed(tasks[0]):
        joint.results = [tasks[0].result()]
        return joint
    joint.failures = [(rank, error) for rank, task in enumerate(tasks) if (error := failed(task))]
    # Those that were cancelled just now have not noticed yet.
    unfinished = [rank for rank, t in enumerate(tasks) if not t.done() or t.cancelled()]
    if unfinished and not joint.problems:
        joint.problems[unfinished[0]] = "was given up"
    if not unfinished and not joint.failures:
        joint.results = [task.result() for task in tasks]
    return joint


def failed(task: asyncio.Task[Any]) -> BaseException | None:
    """The error that a task ended with, if it did."""
    return task.exception() if task.done() and not task.cancelled() else None


async def _until_decided(
    tasks: Sequence[asyncio.Task[Any]],
    losses: Sequence[asyncio.Task[None]],
    led: bool,
    limit_s: float | None,
) -> list[int]:
    """Wait until all is done, or it is clear that it will not be; the ranks that took too long."""

    def decided() -> bool:
        over = all(task.done() for task in tasks) or (led and tasks[0].done())
        return over or any(map(failed, tasks)) or any(loss.done() for loss in losses)

    try:
        async with awake.Timeout(limit_s):
            while not decided():
                pending = [task for task in tasks if not task.done()]
                await asyncio.wait((*pending, *losses), return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        if not decided():
            return [rank for rank, task in enumerate(tasks) if not task.done()]
    return []
