"""Members at one piece of work: how long they are waited for."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

from coordinator.executors.together import together
from coordinator.nodes.link import NodeLink
from tests.coordinator.fakes import run


def members() -> list[NodeLink]:
    """Two that are not lost."""
    return cast(list[NodeLink], [SimpleNamespace(lost=asyncio.Event().wait) for _ in range(2)])


async def at_once() -> int:
    return 1


async def hanging() -> int:
    return cast(int, await asyncio.Event().wait())


def test_who_takes_too_long_is_told() -> None:
    """And nobody else."""

    async def test() -> None:
        joint = await together([at_once(), hanging()], members(), limit_s=0.1)
        assert (joint.late, joint.results) == ([1], [])
        assert "0.1 s" in joint.problems[1]

    run(test())


def test_a_coordinator_that_stood_still_blames_no_member() -> None:
    """An answer that lies there unread when it goes on is in time."""

    async def test() -> None:
        loop = asyncio.get_running_loop()

        async def answered_meanwhile() -> int:
            answer: asyncio.Future[int] = loop.create_future()
            await asyncio.sleep(0)
            time.sleep(0.6)
            loop.call_later(0.01, answer.set_result, 2)
            return await answer

        joint: Any = await together([at_once(), answered_meanwhile()], members(), limit_s=0.3)
        assert (joint.late, joint.results) == ([], [1, 2])

    run(test())
