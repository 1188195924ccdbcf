"""What crosses the streams of single calls to the members of an executor, over real streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np
import pytest

from coordinator.executors.executor import Executor
from coordinator.executors.predict_lane import PatchedModel
from coordinator.lifecycle.node import NodePhase, NodeView
from coordinator.nodes.link import NodeLink
from ditmesh import errors, shared_memory
from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError
from ditmesh.exchange import Receiver, read_specs
from ditmesh.rpc_status import to_status_bytes
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2, node_pb2_grpc, sampler_pb2, tensor_pb2
from ditmesh.v1 import node_pb2 as pb
from tests.chunks import chunks
from tests.coordinator.fakes import run, stop

MODEL = PatchedModel("tiny")


class ScriptedNode(node_pb2_grpc.NodeServiceServicer):
    """Answers calls with twice their x. What came to it, and what it asked for, is in `talk`."""

    def __init__(self, leads: bool, *, old: bool = False, blind: bool = False) -> None:
        """`old`: it knows nothing of what a call may bring along; `blind`: it sees no memory."""
        self.leads, self.old, self.blind = leads, old, blind
        self.store = ContentStore(1 << 28)
        self.talk: list[Any] = []
        self.fail: DitmeshError | None = None

    async def PredictStep(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """As a node."""
        await anext(requests)
        async for request in requests:
            self.talk.append("call")
            if self.fail is not None:
                failure = sampler_pb2.CallError(status=to_status_bytes(self.fail))
                yield pb.PredictStepResponse(error=failure)
                return
            async for answer in self._answer(request, requests):
                yield answer

    async def _answer(self, request: Any, requests: Any) -> AsyncIterator[Any]:
        call = request.call
        memory = request.memory if request.HasField("memory") and not self.old else None
        unasked = 0 if self.old else call.unasked
        specs = read_specs(call.tensors, field="t", max_bytes=1 << 30)
        receiver = Receiver(specs, field="t", store=self.store, unasked=unasked)
        if memory is not None and not self.blind:
            mapped = _attach(memory)
            offsets = {place.tensor: place.offset for place in memory.tensors.tensors}
            assert all(not specs[index].sha256 for index in offsets)
            receiver.place({i: mapped[at : at + specs[i].nbytes] for i, at in offsets.items()})
        asked = receiver.missing[unasked:]
        if asked or not (unasked or memory):
            yield self._needed(asked)
        while not receiver.complete:
            request_or_piece = await anext(requests)
            if request_or_piece.HasField("chunk"):
                self.talk.append(("chunk", request_or_piece.chunk.tensor))
                receiver.feed(request_or_piece.chunk)
            elif self.blind:
                self.talk.append("shared")
                yield self._needed(receiver.missing)
            else:
                self.talk.append("shared")
                receiver.place(_read(request_or_piece.shared, specs))
        if self.old or not request.at_once:
            yield pb.PredictStepResponse(ready=pb.RunReady())
            assert (await anext(requests)).HasField("start")
            self.talk.append("start")
        result = sampler_pb2.PredictResult(call_id=call.call_id)
        if not self.leads:
            yield pb.PredictStepResponse(result=result)
            return
        output = WireTensor.from_numpy(2 * receiver.tensors()[call.x].numpy())
        result.output.CopyFrom(output.spec.to_proto())
        if memory is not None and not self.blind:
            _attach(memory)[memory.output :][: output.spec.nbytes] = output.data
            yield pb.PredictStepResponse(result=result, written=True)
            return
        yield pb.PredictStepResponse(result=result)
        for chunk in chunks([output], [0]):
            yield pb.PredictStepResponse(chunk=chunk)

    def _needed(self, indices: Sequence[int]) -> pb.PredictStepResponse:
        self.talk.append(list(indices))
        return pb.PredictStepResponse(needed=tensor_pb2.TensorsNeeded(tensors=indices))


def _attach(memory: tensor_pb2.CallMemory) -> memoryview:
    shared = memory.tensors
    return shared_memory.attach(shared.pid, shared.fd, shared.token)


def _read(shared: Any, specs: Any) -> dict[int, bytes | memoryview]:
    places = [(place.offset, specs[place.tensor].nbytes) for place in shared.tensors]
    found = shared_memory.read(shared.pid, shared.fd, shared.token, places)
    return {place.tensor: data for place, data in zip(shared.tensors, found, strict=True)}


@asynccontextmanager
async def executor(*nodes: ScriptedNode, here: bool) -> AsyncIterator[Executor]:
    """The nodes as its members, on this machine or, for all that it knows, elsewhere."""
    servers, links = [], []
    for node in nodes:
        server = grpc.aio.server()
        node_pb2_grpc.add_NodeServiceServicer_to_server(node, server)
        link = NodeLink(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", silence_s=5.0)
        link.view = NodeView(NodePhase.JOINED, "one", 1, "")
        link.report = pb.WatchResponse(host=shared_memory.host_id() if here else "another")
        await server.start()
        servers.append(server)
        links.append(link)
    made = Executor("group", links)
    try:
        yield made
    finally:
        made.close()
        for link in links:
            await link.close()
        await stop(*servers)


async def predict(made: Executor, value: float, *, cells: int = 64) -> None:
    """A call on a latent of so many rows and columns; its text has a hash. Checks the output."""
    x = np.full((1, 16, cells, cells), value, np.float32)
    tensors = [
        WireTensor.from_numpy(x),
        WireTensor.from_numpy(np.ones((1, 600, 64), np.float32)).hashed(),
    ]
    call = sampler_pb2.PredictCall(
        call_id=1,
        # What a client has promised to the coordinator is nothing to the nodes.
        unasked=1,
        timestep=[0.5],
        tensors=[tensor.spec.to_proto() for tensor in tensors],
        conditioning=job_pb2.Conditioning(text=1),
    )
    output = await made.predict(MODEL, call, tensors)
    assert np.array_equal(output.numpy(), 2 * x)


FIRST_HERE = ["call", [1], "shared", "start"]
FIRST_ELSEWHERE = ["call", [1], ("chunk", 0), ("chunk", 1), "start"]
OLD_LATER = ["call", [0], ("chunk", 0), "start"]
BLIND = ["call", [0, 1], "shared", [0, 1], ("chunk", 0), ("chunk", 1), "start"]


@pytest.mark.parametrize(
    ("members", "here", "options", "first", "later"),
    [
        (1, True, {}, FIRST_HERE, ["call"]),
        (2, True, {}, FIRST_HERE, ["call", "start"]),
        (1, False, {}, FIRST_ELSEWHERE, ["call", ("chunk", 0)]),
        (2, False, {}, FIRST_ELSEWHERE, ["call", ("chunk", 0), "start"]),
        (1, True, {"old": True}, ["call", [0, 1], "shared", "start"], OLD_LATER),
        (1, True, {"blind": True}, BLIND, ["call", ("chunk", 0)]),
    ],
)
def test_what_is_new_in_a_call_comes_with_it(
    members: int, here: bool, options: Any, first: list[Any], later: list[Any]
) -> None:
    """In memory or unasked; a text that members have is not sent again; one member alone needs no
    start. A node from before all that, and one that sees no memory, are sent what they ask for.
    """

    async def test() -> None:
        nodes = [ScriptedNode(rank == 0, **options) for rank in range(members)]
        async with executor(*nodes, here=here) as made:
            for value, expected in ((1.0, first), (2.0, later), (3.0, None)):
                for node in nodes:
                    node.talk.clear()
                await predict(made, value)
                for node in nodes:
                    # Whether a chunk comes before or after a question is chance.
                    talk = sorted(node.talk, key=str)
                    assert expected is None or talk == sorted(expected, key=str)

    run(test())


@pytest.mark.parametrize("old", [False, True])
def test_a_node_elsewhere_gets_a_tensor_once_that_it_asks_for_although_it_is_on_its_way(
    old: bool,
) -> None:
    """As nodes from before do."""

    async def test() -> None:
        node = ScriptedNode(True, old=old)
        async with executor(node, here=False) as made:
            for value in (1.0, 2.0):
                await predict(made, value)
        assert node.talk.count(("chunk", 0)) == 2
        assert node.talk.count(("chunk", 1)) == 1

    run(test())


def test_a_member_that_cannot_prepare_keeps_the_others_from_starting() -> None:
    """They would wait for it in a collective."""

    async def test() -> None:
        nodes = [ScriptedNode(True), ScriptedNode(False)]
        async with executor(*nodes, here=True) as made:
            await predict(made, 1.0)
            nodes[0].talk.clear()
            nodes[1].fail = errors.InvalidRequest("no", field="call.x")
            with pytest.raises(errors.InvalidRequest, match="no"):
                await predict(made, 2.0)
            assert "start" not in nodes[0].talk
            nodes[1].fail = None
            await predict(made, 3.0)

    run(test())


def test_memory_of_large_calls_is_not_kept() -> None:
    """Between calls there is what a usual picture needs; larger and smaller calls alternate."""

    async def test() -> None:
        node = ScriptedNode(True)
        async with executor(node, here=True) as made:
            for cells, kept in ((16, True), (256, False), (16, True), (64, True)):
                await predict(made, 1.0, cells=cells)
                (lane,) = made._lanes.values()
                assert (lane._memory._memory is not None) == kept

    run(test())
