"""Claims for tests of the queue."""

from __future__ import annotations

import asyncio

from coordinator.jobs.scheduler import Claim, Grant
from coordinator.lifecycle.ladder import Policy
from tests.coordinator.fakes import World


def claim(policy: Policy = Policy.ALLOW, **options: object) -> Claim:
    """A small job's wish for an executor."""
    return Claim("tiny", policy, cells=16, steps_left=4, **options)  # type: ignore[arg-type]


async def waiting(w: World, *claims: Claim) -> list[asyncio.Task[Grant]]:
    """Claims that have come to the queue, in this order."""
    tasks = [asyncio.create_task(w.scheduler.acquire(c)) for c in claims]
    await asyncio.sleep(0)
    return tasks
