"""Single transformer calls that bring memory along, honest ones and others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from coordinator.config import Limits
from ditmesh.call_memory import CallMemory
from ditmesh.errors import InvalidTensor, Overloaded
from ditmesh.rpc_status import from_status_bytes
from ditmesh.shared_memory import host_id
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2, tensor_pb2
from ditmesh.v1 import sampler_pb2 as pb
from tests.chunks import chunks
from tests.coordinator.client import Served, served
from tests.coordinator.fakes import f32, run, settled

PAGE = 4096


class Caller:
    """A client with memory for calls on a 4x4 latent."""

    def __init__(self, s: Served, stream: Any) -> None:
        self.world = s.world
        self.memory = CallMemory()
        self._stream = stream
        self._calls = 0

    def request(self, value: float = 0.5) -> tuple[pb.PredictRequest, list[WireTensor]]:
        """A call whose x lies in memory, and its tensors."""
        self._calls += 1
        texts = (f32(1, 2, 64).hashed(), f32(1, 32).hashed())
        tensors = [f32(1, 16, 4, 4, value=value), *texts]
        for _ in self.memory.fill(tensors, 0):
            pass
        call = pb.PredictCall(
            call_id=self._calls,
            x=0,
            timestep=[0.5],
            conditioning=job_pb2.Conditioning(text=1, pooled=2),
            tensors=[tensor.spec.to_proto() for tensor in tensors],
        )
        return pb.PredictRequest(call=call, memory=self.memory.message), tensors

    async def call(
        self, request: pb.PredictRequest, tensors: list[WireTensor]
    ) -> tuple[pb.PredictResponse, list[int]]:
        """The answer but for chunks, and what had to be sent."""
        await self._stream.write(request)
        asked = []
        while (answer := await self._stream.read()).HasField("needed"):
            asked += answer.needed.tensors
            for chunk in chunks(tensors, answer.needed.tensors):
                await self._stream.write(pb.PredictRequest(chunk=chunk))
        return answer, asked

    async def output(self, answer: pb.PredictResponse) -> bytes:
        """What a call has led to, wherever it is."""
        if answer.written:
            return bytes(self.memory.output)
        return bytes((await self._stream.read()).chunk.data)


@asynccontextmanager
async def caller(host: str | None = None, **options: Any) -> AsyncIterator[Caller]:
    """A stream on which a first call has been answered, so that the texts are known."""
    async with served(**options) as s:
        stream = s.stub.Predict()
        opening = pb.PredictOpen(model="tiny", host=host_id() if host is None else host)
        await stream.write(pb.PredictRequest(open=opening))
        made = Caller(s, stream)
        answer, asked = await made.call(*made.request())
        assert answer.shares == (host is None)
        assert asked == ([1, 2] if host is None else [0, 1, 2])
        await made.output(answer)
        yield made
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert s.world.jobs.bytes_in_flight == 0
        made.memory.close()


def test_a_call_is_one_message_and_so_is_its_answer() -> None:
    """The x is read out of the client's memory and the output written to it."""

    async def test() -> None:
        async with caller() as c:
            for value in (1.0, 2.0):
                request, tensors = c.request(value)
                answer, asked = await c.call(request, tensors)
                assert not asked
                assert answer.written
                assert await c.output(answer) == tensors[0].data

    run(test())


@pytest.mark.parametrize("host", ["", "another machine"])
def test_memory_of_a_client_elsewhere_is_not_looked_at(host: str) -> None:
    """Whatever it sends: it is asked for its tensors, and sent the output."""

    async def test() -> None:
        async with caller(host) as c:
            answer, asked = await c.call(*c.request())
            assert asked == [0]
            assert not answer.written
            assert not answer.shares
            assert await c.output(answer)

    run(test())


@pytest.mark.parametrize("offset", [3 * PAGE - 1, 1 << 40, (1 << 64) - 1])
def test_a_tensor_beyond_the_end_of_the_memory_is_refused(offset: int) -> None:
    """It is never taken to be shorter; the stream goes on."""

    async def test() -> None:
        async with caller() as c:
            request, tensors = c.request()
            request.memory.tensors.tensors[0].offset = offset
            answer, _ = await c.call(request, tensors)
            error = from_status_bytes(answer.error.status)
            assert isinstance(error, InvalidTensor)
            assert error.field == "call.tensors[0]"
            answer, asked = await c.call(*c.request())
            assert answer.written
            assert not asked

    run(test())


@pytest.mark.parametrize("output", [0, 3 * PAGE - 1, 1 << 40, (1 << 64) - 1])
def test_an_output_without_room_is_sent(output: int) -> None:
    """Nothing is written where there is too little, nor over what the memory is known by."""

    async def test() -> None:
        async with caller() as c:
            request, tensors = c.request()
            request.memory.output = output
            answer, asked = await c.call(request, tensors)
            assert not asked
            assert not answer.written
            assert await c.output(answer) == tensors[0].data

    run(test())


def no_file(memory: tensor_pb2.SharedTensors) -> None:
    memory.fd = 1 << 20


def no_process(memory: tensor_pb2.SharedTensors) -> None:
    memory.pid = 0


def another(memory: tensor_pb2.SharedTensors) -> None:
    memory.token = bytes(16)


def part_of_the_token(memory: tensor_pb2.SharedTensors) -> None:
    memory.token = memory.token[:1]


def no_memory(memory: tensor_pb2.SharedTensors) -> None:
    memory.fd = 0


@pytest.mark.parametrize("lie", [no_file, no_process, another, part_of_the_token, no_memory])
def test_memory_that_is_not_there_is_asked_for(lie: Any) -> None:
    """And what is another's is not read: whoever has all of its token was told by its owner."""

    async def test() -> None:
        async with caller() as c:
            request, tensors = c.request()
            lie(request.memory.tensors)
            answer, asked = await c.call(request, tensors)
            assert asked == [0]
            assert not answer.written
            assert await c.output(answer) == tensors[0].data

    run(test())


def test_a_tensor_with_a_hash_is_not_taken_from_memory() -> None:
    """It would be kept, and nobody has computed its hash."""

    async def test() -> None:
        async with caller() as c:
            request, tensors = c.request()
            unknown = f32(1, 2, 64, value=0.25).hashed()
            tensors[1] = unknown
            request.call.tensors[1].CopyFrom(unknown.spec.to_proto())
            where = request.memory.tensors.tensors
            where.add(tensor=1, offset=where[0].offset)
            where.add(tensor=99, offset=where[0].offset)
            answer, asked = await c.call(request, tensors)
            assert asked == [1]
            assert answer.written

    run(test())


def test_what_is_checked_is_what_is_used() -> None:
    """NaN in memory is refused, and what its owner writes there later reaches no executor."""

    async def test() -> None:
        async with caller() as c:
            request, tensors = c.request(float("nan"))
            answer, _ = await c.call(request, tensors)
            assert isinstance(from_status_bytes(answer.error.status), InvalidTensor)
            request, tensors = c.request(2.0)

            async def meanwhile(step: int) -> None:
                c.memory._mapped[PAGE : 2 * PAGE] = bytes(PAGE)

            c.world.scripts["group"].before = meanwhile
            answer, _ = await c.call(request, tensors)
            assert await c.output(answer) == tensors[0].data

    run(test())


def test_memory_counts_as_what_is_sent_does() -> None:
    """A call that does not fit into the budget is refused for now."""

    async def test() -> None:
        x = 4 * 16 * 16
        call_bytes = 2 * x + 4 * (128 + 32)
        async with caller(limits=Limits(in_flight_bytes=call_bytes + 100)) as c:
            await settled(lambda: c.world.jobs.bytes_in_flight)
            with c.world.jobs.reserved(200):
                answer, _ = await c.call(*c.request())
                assert isinstance(from_status_bytes(answer.error.status), Overloaded)
            answer, _ = await c.call(*c.request())
            assert answer.written

    run(test())
