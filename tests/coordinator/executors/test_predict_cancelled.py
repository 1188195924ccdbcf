"""A single call that nobody waits for any more, while members are at it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ditmesh.v1 import node_pb2 as pb
from ditmesh.v1 import sampler_pb2
from tests.coordinator.executors.test_predict_lane import ScriptedNode, executor, predict
from tests.coordinator.fakes import run, until


class Late(ScriptedNode):
    """Reads that it is to start when the test lets it; as on a machine that is busy."""

    def __init__(self, leads: bool) -> None:
        super().__init__(leads)
        self.may_read = asyncio.Event()
        self.starts: list[bool] = []

    async def _answer(self, request: Any, requests: Any) -> Any:
        for _ in range(request.call.unasked):
            await anext(requests)
        yield pb.PredictStepResponse(ready=pb.RunReady())
        await self.may_read.wait()
        self.starts.append((await anext(requests)).HasField("start"))
        result = sampler_pb2.PredictResult(call_id=request.call.call_id)
        yield pb.PredictStepResponse(result=result)


@pytest.mark.parametrize("late", [0, 1])
def test_members_begin_a_call_that_is_cancelled_all_or_none(late: int) -> None:
    """The executor is not given back before: a member that was cut off from its start would go on
    with the next work, and answer with it those that wait for it in this call.
    """

    async def test() -> None:
        nodes = [Late(leads=True), Late(leads=False)]
        async with executor(*nodes, here=False) as made:
            nodes[1 - late].may_read.set()
            calling = asyncio.create_task(predict(made, 1.0, cells=4))
            await until(lambda: nodes[1 - late].starts)
            calling.cancel()
            await asyncio.sleep(0.05)
            assert not calling.done()
            nodes[late].may_read.set()
            with pytest.raises(asyncio.CancelledError):
                await calling
            assert nodes[late].starts == [True]

    run(test())
